//! One state of the modelled world, small enough to be kept by the million.

/// Which image a workload names, or a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Image {
    Old,
    New,
    /// Of a version that the release asks for later, which is in no plan.
    Later,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pod {
    None,
    Up(Image),
    /// It cannot run for now, and the kubelet says so.
    Broken(Image),
}

/// The workloads: the Server, and a worker that is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    Server,
    Worker,
}

/// What the key holds that Memoria reads as its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    Prior,
    New,
    Theirs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub text: Text,
    pub version: u8,
    /// The immutable copy of both texts is there.
    pub kept: bool,
    /// Another hand's doing: it wrote what is there, or took the copy away.
    pub stray: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Load {
    /// One replica or none.
    pub up: bool,
    pub image: Image,
    pub marked: bool,
    /// The mark says that the attempt goes back.
    pub back: bool,
    pub pod: Pod,
    pub generation: u8,
    /// Another hand, not the operator, asked for the replica that is there.
    pub stray: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Candidate {
    Absent,
    /// Made, and not admitted to any node.
    Gated,
    Starting,
    Ready,
    Broken,
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    Fence,
    Snapshot,
    Migrate,
    Baseline,
    Bootstrap,
    Restore,
    RestoreAccepted,
}

impl Step {
    pub const ALL: [Step; 7] = [
        Step::Fence,
        Step::Snapshot,
        Step::Migrate,
        Step::Baseline,
        Step::Bootstrap,
        Step::Restore,
        Step::RestoreAccepted,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Step::Fence => "fence",
            Step::Snapshot => "snapshot",
            Step::Migrate => "migrate",
            Step::Baseline => "baseline",
            Step::Bootstrap => "bootstrap",
            Step::Restore => "restore",
            Step::RestoreAccepted => "restore-accepted",
        }
    }

    pub fn of(name: &str) -> Step {
        Step::ALL.into_iter().find(|step| step.name() == name).expect("a step of the plan")
    }

    pub fn restores(self) -> bool {
        matches!(self, Step::Restore | Step::RestoreAccepted)
    }
}

/// What a Job left to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    Ok,
    /// The fault of image, database or storage, by step.
    Fails,
    /// The guard: another pod began, and nobody knows how far it came.
    Unknown,
    /// The guard: the data is not the snapshot's.
    Changed,
    /// The restore asks for a person's word.
    Asks,
    /// The pod went without a message.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    Absent,
    /// Created; nothing was done yet.
    Pending,
    /// Its effect is under way or done, its report is not there.
    Working,
    /// Neither goes on nor ends.
    Hung,
    Ended(Report),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    pub run: Run,
    /// Of all Jobs of this step the how many-th.
    pub uid: u8,
    /// A restore's orders: clients may have written, and there is a baseline to tell.
    pub late: bool,
    pub baseline: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schema {
    Old,
    /// A migration began.
    Half,
    New,
    /// Dropped, and nothing in its place.
    Gone,
}

/// The database's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Data {
    pub schema: Schema,
    /// How many writes of clients it holds.
    pub writes: u8,
    /// A server rewrote rows when it started.
    pub touched: bool,
}

/// The marker row of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Marker {
    None,
    Begun,
    Finished(Report),
}

/// What `spec.version` of the release names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    Planned,
    Former,
    Later,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Orders {
    pub abort: bool,
    pub rollback: bool,
    pub accept: bool,
    pub retry: bool,
    pub suspend: bool,
    pub wanted: Wanted,
}

/// Whether what a controller read is still as it was read: the resourceVersion of each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fresh {
    pub journal: bool,
    pub server: bool,
    pub worker: bool,
    pub settings: bool,
}

impl Fresh {
    pub const ALL: Fresh = Fresh { journal: true, server: true, worker: true, settings: true };
}

/// A decision on its way: the journal to be stored, then the actions one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// Number of the decision.
    pub decision: u32,
    /// 0: the journal; n: the n-th action.
    pub at: u8,
    pub fresh: Fresh,
}

/// The first half of a look: journal and workloads were read, the rest was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HalfRead {
    pub journal: u32,
    pub server: Load,
    pub worker: Load,
    pub fresh: Fresh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Number of the stored journal.
    pub journal: u32,
    /// Every limit that began under a lower value has run out.
    pub clock: u8,
    pub server: Load,
    pub worker: Load,
    pub candidate: Candidate,
    /// In a world whose plan has settings to refresh.
    pub settings: Option<Settings>,
    pub jobs: [Job; 7],
    pub data: Data,
    pub marker: Marker,
    /// A migration whose pod is gone still runs in the database server.
    pub zombie: bool,
    /// The snapshot in storage.
    pub stored: Option<Data>,
    /// The baseline in storage: the writes that it knew.
    pub baseline: Option<u8>,
    pub orders: Orders,
    /// The API server refused an action for good; the leader remembers it until its next look.
    pub refusal: bool,
    pub lead: Option<Pending>,
    /// What a former leader, paused after it had checked that it leads, still has on its way: one write.
    pub ghost: Option<Pending>,
    pub half: Option<HalfRead>,
    /// Disturbances that may still come.
    pub left: u8,
    /// How often migrations began.
    pub begun: u8,
    /// A restore was committed, with its marker.
    pub restored: bool,
    /// It took back what a client had written, and nobody was told.
    pub untold: bool,
    /// The new version failed by its own fault.
    pub guilty: bool,
    /// Bits of the rules that were broken.
    pub broke: u16,
}

impl State {
    pub fn first(left: u8, settings: bool) -> Self {
        let first = Settings { text: Text::Prior, version: 1, kept: false, stray: false };
        let load = |image| Load {
            up: true,
            image,
            marked: false,
            back: false,
            pod: Pod::Up(image),
            generation: 1,
            stray: false,
        };
        Self {
            journal: 0,
            clock: 0,
            server: load(Image::Old),
            worker: load(Image::Old),
            candidate: Candidate::Absent,
            settings: settings.then_some(first),
            jobs: [Job { run: Run::Absent, uid: 0, late: false, baseline: false }; 7],
            data: Data { schema: Schema::Old, writes: 0, touched: false },
            marker: Marker::None,
            zombie: false,
            stored: None,
            baseline: None,
            orders: Orders {
                abort: false,
                rollback: false,
                accept: false,
                retry: false,
                suspend: false,
                wanted: Wanted::Planned,
            },
            refusal: false,
            lead: None,
            ghost: None,
            half: None,
            left,
            begun: 0,
            restored: false,
            untold: false,
            guilty: false,
            broke: 0,
        }
    }

    pub fn job(&self, step: Step) -> &Job {
        &self.jobs[step as usize]
    }

    pub fn job_mut(&mut self, step: Step) -> &mut Job {
        &mut self.jobs[step as usize]
    }

    pub fn load(&self, who: Who) -> &Load {
        match who {
            Who::Server => &self.server,
            Who::Worker => &self.worker,
        }
    }

    /// For a change of a workload: whoever read it before holds an old resourceVersion from now on.
    pub fn change(&mut self, who: Who) -> &mut Load {
        let fresh = self.lead.iter_mut().chain(&mut self.ghost).map(|pending| &mut pending.fresh);
        for fresh in fresh.chain(self.half.iter_mut().map(|half| &mut half.fresh)) {
            match who {
                Who::Server => fresh.server = false,
                Who::Worker => fresh.worker = false,
            }
        }
        match who {
            Who::Server => &mut self.server,
            Who::Worker => &mut self.worker,
        }
    }

    /// The same for the settings.
    pub fn write_settings(&mut self, text: Text, stray: bool) {
        let fresh = self.lead.iter_mut().chain(&mut self.ghost).map(|pending| &mut pending.fresh);
        fresh.for_each(|fresh| fresh.settings = false);
        if let Some(settings) = &mut self.settings {
            *settings = Settings { text, stray, version: settings.version + 1, ..*settings };
        }
    }

    /// The same for the journal.
    pub fn store(&mut self, journal: u32) {
        let fresh = self.lead.iter_mut().chain(&mut self.ghost).map(|pending| &mut pending.fresh);
        for fresh in fresh.chain(self.half.iter_mut().map(|half| &mut half.fresh)) {
            fresh.journal = false;
        }
        self.journal = journal;
    }

    /// A pod runs that can write.
    pub fn writer_runs(&self) -> bool {
        matches!(self.server.pod, Pod::Up(_)) || matches!(self.worker.pod, Pod::Up(_))
    }
}
