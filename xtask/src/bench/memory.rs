//! Peak memory of pods on this machine, measured from outside and so the same for whatever runs in them: every tenth of a
//! second the resident memory of all processes of each pod is added up. A page that two processes of a pod share counts
//! twice, and what lives for less than a sample's distance may be missed. The page cache is not in it, unlike in the
//! peak that a cgroup of version 1 keeps.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Result, bail};

const EVERY: Duration = Duration::from_millis(100);
/// Of a UID as text.
const UID: usize = 36;

/// Samples until [`Sampler::finish`], or until it is dropped.
pub struct Sampler {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Peaks>>,
}

/// UID of a pod → KiB.
type Peaks = BTreeMap<String, u64>;

impl Sampler {
    pub fn begin() -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::spawn(move || {
            let mut peaks = Peaks::new();
            while !ended.load(Ordering::Relaxed) {
                for (uid, kib) in sample() {
                    let peak = peaks.entry(uid).or_default();
                    *peak = kib.max(*peak);
                }
                sleep(EVERY);
            }
            peaks
        });
        Self { end, thread: Some(thread) }
    }

    /// The greatest peak of these pods, in MiB. Pods that none of this machine's processes belonged to are an error.
    pub fn finish(mut self, pods: &[String]) -> Result<f64> {
        self.end.store(true, Ordering::Relaxed);
        let peaks = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(peaks)) => peaks,
            _ => bail!("the thread that samples memory has died"),
        };
        let Some(kib) = pods.iter().filter_map(|pod| peaks.get(pod)).max() else {
            bail!("no process on this machine belonged to one of the pods {}", pods.join(", "));
        };
        Ok(mib(*kib))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// Resident memory of every pod's processes at this moment. A process that ends meanwhile is left out.
fn sample() -> Peaks {
    let mut pods = Peaks::new();
    let Ok(processes) = fs::read_dir("/proc") else { return pods };
    for process in processes.flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let read = |file: &str| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        if let Some(uid) = pod_of(&read("cgroup")) {
            *pods.entry(uid).or_default() += resident(&read("status"));
        }
    }
    pods
}

/// The pod that a process belongs to, by its cgroups: `…/pod<uid>/…`, or `…-pod<uid with _>.slice` under systemd.
fn pod_of(cgroups: &str) -> Option<String> {
    cgroups.match_indices("pod").find_map(|(begin, word)| {
        let uid = cgroups.get(begin + word.len()..begin + word.len() + UID)?.replace('_', "-");
        let dashes = uid.match_indices('-').map(|(at, _)| at).eq([8, 13, 18, 23]);
        (dashes && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())).then_some(uid)
    })
}

/// In KiB.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn mib(kib: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "no machine has so much memory that it shows")]
    let kib = kib as f64;
    (kib / 1024.0 * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0f3f9c2e-6a51-4d1c-9d5b-0c9a3b7a1e42";

    #[test]
    fn a_process_is_known_by_the_cgroup_of_its_pod() {
        let v1 = format!(
            "12:pids:/node/kubepods/besteffort/pod{POD}/0a1b\n5:memory:/node/kubepods/besteffort/pod{POD}/0a1b\n"
        );
        assert_eq!(pod_of(&v1).as_deref(), Some(POD));
        let systemd =
            format!("0::/kubepods.slice/kubepods-besteffort-pod{}.slice/cri-1.scope\n", POD.replace('-', "_"));
        assert_eq!(pod_of(&systemd).as_deref(), Some(POD));
        assert_eq!(pod_of("0::/system.slice/podman-of-somebody-who-is-no-pod-of-kubernetes.service\n"), None);
        assert_eq!(pod_of("0::/node/kubepods\n"), None);
    }

    #[test]
    fn resident_memory_is_read_and_a_kernel_thread_has_none() {
        assert_eq!(resident("Name:\tpython\nVmHWM:\t   9000 kB\nVmRSS:\t   5120 kB\n"), 5120);
        assert_eq!(resident("Name:\tkthreadd\n"), 0);
        assert!((mib(5120) - 5.0).abs() < f64::EPSILON);
    }

    #[test]
    fn pods_that_nobody_saw_are_an_error_and_not_zero() {
        assert!(Sampler::begin().finish(&[POD.to_owned()]).is_err());
    }
}
