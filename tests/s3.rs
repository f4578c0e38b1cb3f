//! A real S3 server in the test's process, its objects in a directory, and what goes wrong on the way to it.

// Each of the test programs uses its part.
#![allow(dead_code)]

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime};

pub const BUCKET: &str = "backups";
pub const KEY: &str = "AKIDEXAMPLE";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+secret";

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is answered with this status and S3's code.
    Answer(StatusCode, &'static str),
    /// It never is.
    Silence,
    /// It is carried out, and the connection ends in the middle of the answer.
    Cut,
}

type Which = Box<dyn Fn(&Request<Incoming>) -> bool + Send>;

struct Rule {
    which: Which,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct Way {
    rules: Vec<Rule>,
    /// Method and address of every request.
    seen: Vec<String>,
}

pub struct S3 {
    objects: TempDir,
    endpoint: String,
    way: Arc<Mutex<Way>>,
    runtime: Option<Runtime>,
}

impl Drop for S3 {
    fn drop(&mut self) {
        // A test may be asynchronous itself.
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl S3 {
    pub fn start() -> Self {
        Self::start_at(IpAddr::from([127, 0, 0, 1]))
    }

    /// At an address of this machine.
    pub fn start_at(address: IpAddr) -> Self {
        let objects = tempfile::Builder::new().prefix("mop-s3-").tempdir().unwrap();
        fs::create_dir(objects.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(objects.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let (service, way) = (service.build(), Arc::new(Mutex::new(Way::default())));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let socket = std::net::TcpListener::bind((address, 0)).unwrap();
        let endpoint = format!("http://{}", socket.local_addr().unwrap());
        socket.set_nonblocking(true).unwrap();
        let shared = way.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(socket).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (service, way) = (service.clone(), shared.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request| pass(service.clone(), way.clone(), request));
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { objects, endpoint, way, runtime: Some(runtime) }
    }

    /// The next `times` requests of this method, whose address holds `part`, go wrong.
    pub fn wrong(&self, method: Method, part: &'static str, times: usize, fault: Fault) {
        self.wrong_where(times, fault, move |request| {
            *request.method() == method && request.uri().to_string().contains(part)
        });
    }

    pub fn wrong_where(&self, times: usize, fault: Fault, which: impl Fn(&Request<Incoming>) -> bool + Send + 'static) {
        self.way.lock().unwrap().rules.push(Rule { which: Box::new(which), times, fault });
    }

    pub fn right(&self) {
        self.way.lock().unwrap().rules.clear();
    }

    /// How many requests of this method there were, whose address holds `part`.
    pub fn count(&self, method: Method, part: &str) -> usize {
        let way = self.way.lock().unwrap();
        way.seen.iter().filter(|seen| seen.starts_with(method.as_str()) && seen.contains(part)).count()
    }

    /// Waits for such a request.
    pub fn wait_for(&self, method: Method, part: &str) {
        let begun = Instant::now();
        while self.count(method.clone(), part) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no {method} of {part}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where an object lies.
    pub fn object(&self, key: &str) -> PathBuf {
        self.objects.path().join(BUCKET).join(key)
    }

    /// The names below a prefix, sorted.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.object(prefix)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The parts of uploads that have no end.
    pub fn parts(&self) -> usize {
        let entries = fs::read_dir(self.objects.path()).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().contains(".part-")).count()
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Lets a program find the server.
    pub fn name_to(&self, command: &mut Command) {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.envs(self.environment());
    }

    /// The variables that name it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variables = [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }
}

pub fn url(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

/// Cuts a file short, flips one of its bits, and gives it back.
pub fn damage(path: &Path) -> [Vec<u8>; 2] {
    let whole = fs::read(path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    [whole[..whole.len() - 1].to_vec(), flipped]
}

async fn pass(
    service: S3Service,
    way: Arc<Mutex<Way>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let fault = {
        let mut way = way.lock().unwrap();
        way.seen.push(format!("{} {}", request.method(), request.uri()));
        way.rules.iter_mut().find(|rule| rule.times > 0 && (rule.which)(&request)).map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        })
    };
    match fault {
        None => Ok(service.call(request.map(Body::from)).await?),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Answer(status, code)) => {
            // Whoever still sends when the answer comes may never read it.
            let _ = request.into_body().collect().await;
            let body =
                format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the test</Message></Error>");
            Ok(Response::builder().status(status).body(Body::from(body))?)
        }
        Some(Fault::Cut) => {
            let (parts, body) = service.call(request.map(Body::from)).await?.into_parts();
            let whole = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            let frames: [Result<Frame<Bytes>, std::io::Error>; 2] =
                [Ok(Frame::data(whole.slice(..whole.len() / 2))), Err(std::io::ErrorKind::ConnectionReset.into())];
            let mut cut = Response::from_parts(parts, Body::http_body(StreamBody::new(futures::stream::iter(frames))));
            cut.headers_mut().insert(header::CONTENT_LENGTH, whole.len().into());
            Ok(cut)
        }
    }
}
