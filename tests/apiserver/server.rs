//! A real etcd and kube-apiserver on loopback ports, started once for all tests of this binary. They end with it.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Config, api::PostParams};
use serde_json::json;

/// Directory with the programs; `cargo xtask test` sets it.
const BIN_ENV: &str = "MEMORIA_TEST_KUBE_BIN";
/// What a person's kubectl reads, in the server's directory.
const KUBECONFIG: &str = "kubeconfig.json";
/// Both programs together are ready within a few seconds; a busy machine takes longer.
const READY_WITHIN: Duration = Duration::from_secs(90);

pub struct Server {
    url: String,
    token: String,
    bin: PathBuf,
    dir: PathBuf,
    programs: Vec<Child>,
}

/// The one server, with the current CRDs installed over those of older versions.
pub fn server() -> &'static Server {
    // Kept as a result: a start that failed once would only fail again, and slowly, for each further test.
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    let started = SERVER.get_or_init(|| {
        let server = Server::start()?;
        crate::stored::before_the_upgrade(&server);
        server.install_crds(&crate::root().join("crds"));
        Ok(server)
    });
    started.as_ref().unwrap_or_else(|why| panic!("{why}"))
}

impl Server {
    fn start() -> Result<Self, String> {
        let bin = PathBuf::from(std::env::var_os(BIN_ENV).unwrap_or_else(|| {
            panic!("{BIN_ENV} is not set: run `cargo xtask test`, or name a directory with etcd and kube-apiserver")
        }));
        let dir = std::env::temp_dir().join(format!("memoria-apiserver-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let [etcd_client, etcd_peer, secure] = free_ports();
        let token = random_hex();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{secure}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        fs::write(dir.join(KUBECONFIG), config.to_string()).unwrap();
        fs::write(dir.join("tokens.csv"), format!("{token},admin,admin,system:masters\n")).unwrap();
        let [private, public] = new_key();
        fs::write(dir.join("signing.pem"), private).unwrap();
        fs::write(dir.join("verifying.pem"), public).unwrap();
        let file = |name: &str| dir.join(name).display().to_string();

        let etcd = supervise(
            &bin.join("etcd"),
            &dir.join("etcd.log"),
            &[
                format!("--data-dir={}", file("etcd")),
                format!("--listen-client-urls=http://127.0.0.1:{etcd_client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{etcd_client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{etcd_peer}"),
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        );
        let apiserver = supervise(
            &bin.join("kube-apiserver"),
            &dir.join("apiserver.log"),
            &[
                format!("--etcd-servers=http://127.0.0.1:{etcd_client}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                format!("--secure-port={secure}"),
                format!("--cert-dir={}", file("certificates")),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--service-cluster-ip-range=10.213.0.0/16".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", file("verifying.pem")),
                format!("--service-account-signing-key-file={}", file("signing.pem")),
            ],
        );
        let url = format!("https://127.0.0.1:{secure}");
        let programs = vec![etcd, apiserver, remove_at_end(&dir)];
        let mut server = Self { url, token, bin, dir, programs };
        server.wait_ready().map(|()| server)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            let answer = self.kubectl(&["get", "--raw", "/readyz"]);
            if answer.status.success() {
                return Ok(());
            }
            let ended = self.programs.iter_mut().any(|p| p.try_wait().unwrap().is_some());
            if ended || Instant::now() > end {
                return Err(format!("the API server did not get ready: {}\n{}", text(&answer.stderr), self.log_tail()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn log_tail(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let log = read("etcd.log") + &read("apiserver.log");
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Server-side apply, and waits until they are served.
    pub fn install_crds(&self, dir: &Path) {
        let dir = dir.display().to_string();
        self.kubectl_ok(&["apply", "--server-side", "--force-conflicts", "-f", &dir]);
        self.kubectl_ok(&["wait", "--for=condition=Established", "--timeout=30s", "-f", &dir]);
    }

    /// A client for the runtime of one test.
    pub fn client(&self) -> Client {
        // TLS without a check of the certificate: both ends are this machine, and the key lives as long as the test.
        let mut config = Config::new(self.url.parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(self.token.clone().into());
        Client::try_from(config).unwrap()
    }

    pub async fn namespace(&self, name: &str) {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        Api::<Namespace>::all(self.client()).create(&PostParams::default(), &namespace).await.unwrap();
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.env("KUBECONFIG", "/dev/null").env("HOME", &self.dir).stdin(Stdio::null());
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.program("kubectl")
            .args(["--server", &self.url, "--token", &self.token, "--insecure-skip-tls-verify"])
            .args(args)
            .output()
            .unwrap()
    }

    /// What it printed; a failure of it is one of the test.
    pub fn kubectl_ok(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(output.status.success(), "kubectl {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Types a command as the administrator does, in `sh`, with kubectl in the path and set to this server.
    pub fn shell(&self, command: &str) -> Output {
        self.shell_with(&self.dir.join(KUBECONFIG), command)
    }

    /// The same in this user's name.
    #[allow(dead_code, reason = "only one of the two programs of tests asks as others")]
    pub fn shell_as(&self, user: &str, command: &str) -> Output {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.url, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "here", "user": {"token": self.token, "as": user}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        });
        let config = self.file(&format!("kubeconfig-{}", random_hex()), &config.to_string());
        self.shell_with(Path::new(&config), command)
    }

    fn shell_with(&self, kubeconfig: &Path, command: &str) -> Output {
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap_or_default());
        let mut sh = Command::new("sh");
        sh.args(["-c", command]).env("KUBECONFIG", kubeconfig).env("HOME", &self.dir).env("PATH", path);
        sh.stdin(Stdio::null()).output().unwrap()
    }

    /// Never asks a cluster: `helm template` and `helm lint` need none.
    pub fn helm(&self, args: &[&str]) -> Output {
        self.program("helm").args(args).output().unwrap()
    }

    /// A file below the server's directory, for what `kubectl -f` shall read.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

/// Runs a program that ends when this process does, however that ends: the shell's standard input is a pipe from it,
/// and what waits for its end kills the shell's process, which the program took over.
fn supervise(program: &Path, log: &Path, args: &[String]) -> Child {
    let log = File::create(log).unwrap();
    Command::new("sh")
        .args(["-c", r#"exec 3<&0; (read -r _ <&3; kill -9 $$) & exec "$@" </dev/null 3<&-"#, "sh"])
        .arg(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Removes the directory when this process ends, after its programs had a moment to go.
fn remove_at_end(dir: &Path) -> Child {
    Command::new("sh")
        .args(["-c", r#"read -r _; sleep 1; rm -rf "$1""#, "sh"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// The key that signs service account tokens, and its public half.
fn new_key() -> [String; 2] {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap();
    [("PRIVATE", key.to_pkcs8v1().unwrap().as_ref()), ("PUBLIC", public.as_ref())].map(|(kind, der)| {
        format!("-----BEGIN {kind} KEY-----\n{}\n-----END {kind} KEY-----\n", BASE64_STANDARD.encode(der))
    })
}

fn random_hex() -> String {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The whole of a file of the repository.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
