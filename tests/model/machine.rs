//! The shipped machine behind small numbers: every journal has one, every decision has one, and the same question is
//! asked of the shipped function once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use memoria_operator::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        upgrade::{Category, Outcome},
    },
    upgrade::{Action, decide},
};

use crate::{
    mutants::{self, Mutant},
    plan::{self, ATTEMPT, BASELINE, MANIFEST, Seen},
    state::{Image, Step, Text, Who},
};

/// An action, as far as the world of the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Mark(Who, bool),
    Unmark(Who),
    Scale(Who, bool),
    SetImage(Image),
    CreateJob { step: Step, manifest: bool, late: bool, baseline: bool },
    DeleteJob { step: Step, uid: u8 },
    CreateCandidate,
    AdmitCandidate,
    DeleteCandidate,
    KeepSettings,
    SetSettings(Text),
}

#[derive(Debug)]
pub struct Decided {
    pub journal: u32,
    pub actions: Vec<Act>,
    /// The number of the same decision, with what is done at the same time in the other order.
    pub reversed: Option<u32>,
    /// It wants to look again when a limit runs out.
    pub later: bool,
}

/// What the rules ask of a journal.
#[derive(Clone, Debug)]
pub struct Told {
    pub outcome: Option<Outcome>,
    /// A person's word is waited for, or that another hand lets go.
    pub awaits: bool,
    /// It turned back, and says that the image is to blame.
    pub blames: bool,
    pub phase: String,
}

#[derive(Default)]
struct Tables {
    numbers: HashMap<String, u32>,
    journals: Vec<Arc<MemoriaUpgradeStatus>>,
    told: Vec<Arc<Told>>,
    asked: HashMap<(u32, Seen), u32>,
    decided: Vec<Arc<Decided>>,
}

impl Tables {
    fn number(&mut self, journal: MemoriaUpgradeStatus) -> u32 {
        let text = serde_json::to_string(&journal).expect("a journal");
        if let Some(number) = self.numbers.get(&text) {
            return *number;
        }
        let number = u32::try_from(self.journals.len()).expect("few journals");
        self.told.push(Arc::new(Told {
            outcome: journal.outcome,
            awaits: journal.rollback.as_ref().is_some_and(|rollback| rollback.awaiting.is_some())
                || journal.message.as_ref().is_some_and(|message| message.contains(OTHER_HAND)),
            blames: journal.failure.as_ref().is_some_and(|failure| failure.category == Category::Candidate),
            phase: journal.phase.clone().unwrap_or_default(),
        }));
        self.journals.push(Arc::new(journal));
        self.numbers.insert(text, number);
        number
    }
}

/// Says that nothing goes on before another hand lets go; of all messages the only one that a rule asks for.
const OTHER_HAND: &str = "something else moves it";

pub struct Machine {
    plan: MemoriaUpgradeSpec,
    mutant: Option<Mutant>,
    tables: Mutex<Tables>,
}

impl Machine {
    pub fn new(automatic: bool, settings: bool, mutant: Option<Mutant>) -> Self {
        let mut tables = Tables::default();
        tables.number(MemoriaUpgradeStatus::default());
        Self { plan: plan::plan(automatic, settings), mutant, tables: Mutex::new(tables) }
    }

    /// How many different journals and questions there were.
    pub fn counts(&self) -> (usize, usize) {
        let tables = self.tables.lock().expect("no panic");
        (tables.journals.len(), tables.asked.len())
    }

    pub fn told(&self, journal: u32) -> Arc<Told> {
        self.tables.lock().expect("no panic").told[journal as usize].clone()
    }

    pub fn decided(&self, number: u32) -> Arc<Decided> {
        self.tables.lock().expect("no panic").decided[number as usize].clone()
    }

    /// Asks the shipped function; answers the decision's number.
    pub fn decide(&self, number: u32, seen: Seen) -> (u32, Arc<Decided>) {
        let mut tables = self.tables.lock().expect("no panic");
        if let Some(known) = tables.asked.get(&(number, seen)) {
            return (*known, tables.decided[*known as usize].clone());
        }
        let journal = tables.journals[number as usize].clone();
        let observed = plan::observed(&seen, &journal);
        let now = plan::time(seen.clock);
        let ask = |journal: &MemoriaUpgradeStatus| match self.mutant {
            None => decide(ATTEMPT, "ns", &self.plan, journal, &observed, now),
            Some(mutant) => mutants::decide(mutant, &self.plan, journal, &observed, &seen),
        };
        let decision = ask(&journal);
        let actions: Vec<_> = decision.actions.iter().map(act).collect();
        let later = decision.wake.is_some_and(|wake| wake > now);
        let next = tables.number(without_words(decision.journal.clone()));
        if next == number && actions.is_empty() && !seen.refusal {
            // Words alone were stored: asked again, it must have nothing more to store.
            let again = ask(&decision.journal);
            assert_eq!(again.journal, decision.journal, "words that change although nothing does");
            assert!(again.actions.is_empty());
            let says = decision.journal.message.as_deref().is_some_and(|words| !words.is_empty());
            assert!(says || journal.outcome.is_some(), "it rests without saying why: {:?}", decision.journal);
        }
        let known = u32::try_from(tables.decided.len()).expect("few decisions");
        let together = || decision.actions.chunk_by(Action::goes_with);
        let reversed = together().any(|group| group.len() > 1).then_some(known + 1);
        let decided = Arc::new(Decided { journal: next, actions, reversed, later });
        tables.decided.push(decided.clone());
        if reversed.is_some() {
            let actions = together().flat_map(|group| group.iter().rev().map(act)).collect();
            tables.decided.push(Arc::new(Decided { journal: next, actions, reversed: None, later }));
        }
        tables.asked.insert((number, seen), known);
        (known, decided)
    }
}

/// Messages are for people: nothing is decided on them, and without them there are fewer journals.
fn without_words(mut journal: MemoriaUpgradeStatus) -> MemoriaUpgradeStatus {
    journal.message.take_if(|message| !message.contains(OTHER_HAND));
    for record in &mut journal.phases {
        record.message.clear();
    }
    let failures =
        journal.failure.iter_mut().chain(journal.rollback.iter_mut().filter_map(|back| back.failure.as_mut()));
    for failure in failures {
        failure.message.clear();
    }
    for decision in &mut journal.decisions {
        decision.refused.as_mut().map(String::clear);
    }
    journal
}

fn act(action: &Action) -> Act {
    match action {
        Action::Mark { workload, back, .. } => Act::Mark(plan::who(workload), *back),
        Action::Unmark { workload, .. } => Act::Unmark(plan::who(workload)),
        Action::Scale { workload, replicas, .. } => {
            assert!((0..=1).contains(replicas), "{replicas} replicas were never planned");
            Act::Scale(plan::who(workload), *replicas == 1)
        }
        Action::SetImage { workload, image, .. } => {
            assert_eq!(plan::who(workload), Who::Server);
            Act::SetImage(plan::image_of(image))
        }
        Action::CreateJob { step, input } => {
            assert!(input.baseline_sha256.as_deref().is_none_or(|sha256| sha256 == BASELINE));
            Act::CreateJob {
                step: Step::of(step),
                manifest: input.manifest_sha256.as_deref() == Some(MANIFEST),
                late: input.late_writes_possible,
                baseline: input.baseline_sha256.is_some(),
            }
        }
        Action::DeleteJob { step, uid } => {
            let number = uid.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
            Act::DeleteJob { step: Step::of(step), uid: number.expect("a Job's number") }
        }
        Action::CreateCandidate { .. } => Act::CreateCandidate,
        Action::AdmitCandidate { .. } => Act::AdmitCandidate,
        Action::DeleteCandidate { .. } => Act::DeleteCandidate,
        Action::KeepConfig => Act::KeepSettings,
        Action::SetConfig { prior, .. } => Act::SetSettings(if *prior { Text::Prior } else { Text::New }),
        other => panic!("the model does not know {other:?}"),
    }
}
