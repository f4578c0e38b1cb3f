//! Connection poolers before the database: named before anything of ours is set on a session that the application shares.
//! The pooler here does what PgBouncer does in its transaction mode, with one server connection for all clients.

use std::sync::{Arc, Mutex};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{InspectOrder, JobOrder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::Mutex as Turn,
};

use crate::{
    cluster::{Cluster, MEMORIA, PASSWORD_ENCODED},
    site::{Site, task},
};

/// What was sent to the server by a pooler's clients.
type Said = Arc<Mutex<Vec<String>>>;

/// A message: its type, and its whole bytes.
async fn message(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await.ok()?;
    let length = stream.read_u32().await.ok()?;
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).await.ok()?;
    Some((kind, [&[kind][..], &length.to_be_bytes(), &body].concat()))
}

fn of(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// A server connection of the application, past its greeting; the socket asks no password.
async fn server(cluster: &Cluster) -> UnixStream {
    let mut stream = UnixStream::connect(cluster.socket_file()).await.unwrap();
    let body = [&196_608u32.to_be_bytes()[..], b"user\0app\0database\0memoria\0\0"].concat();
    stream.write_all(&[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()).await.unwrap();
    while message(&mut stream).await.unwrap().0 != b'Z' {}
    stream
}

/// Greets each client itself, then hands the one server connection to whoever has a transaction.
async fn pooler(cluster: &Cluster) -> (u16, Said) {
    let (said, backend) = (Said::default(), Arc::new(Turn::new(server(cluster).await)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, heard) = (listener.local_addr().unwrap().port(), said.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, backend.clone(), heard.clone()));
        }
    });
    (port, said)
}

async fn serve(mut client: TcpStream, backend: Arc<Turn<UnixStream>>, said: Said) -> Option<()> {
    greet(&mut client).await?;
    let ready = [of(b'R', &[0; 4]), of(b'S', b"server_version\x0015.0\0"), of(b'K', &[7; 8]), of(b'Z', b"I")];
    client.write_all(&ready.concat()).await.ok()?;
    let mut asked = Vec::new();
    loop {
        let (kind, bytes) = message(&mut client).await?;
        said.lock().unwrap().push(String::from_utf8_lossy(&bytes[5..]).into_owned());
        asked.extend(bytes);
        if kind == b'Q' || kind == b'S' {
            let mut server = backend.lock().await;
            server.write_all(&std::mem::take(&mut asked)).await.ok()?;
            loop {
                let (kind, bytes) = message(&mut *server).await?;
                client.write_all(&bytes).await.ok()?;
                if kind == b'Z' {
                    break;
                }
            }
        }
    }
}

/// Reads the client's startup parameters.
async fn greet(client: &mut TcpStream) -> Option<Vec<u8>> {
    let length = client.read_u32().await.ok()?;
    let mut startup = vec![0; length as usize - 4];
    client.read_exact(&mut startup).await.ok()?;
    Some(startup)
}

async fn inspected(cluster: &Cluster, port: u16) -> String {
    let mut database = task(cluster, "prod-1").await;
    database.identity = None;
    let url = format!("postgresql+psycopg2://app:{PASSWORD_ENCODED}@127.0.0.1:{port}/memoria?sslmode=disable");
    let answer =
        Site::new().run_with(&JobOrder::Inspect(InspectOrder { database, carry_forward: Vec::new() }), &url).await;
    answer.is(false, "DirectConnection", Some(Category::Environment));
    answer.report.message
}

fn is_clear(message: &str, port: u16) {
    for part in [&format!("127.0.0.1:{port} is a connection pooler")[..], "give a URL that leads to PostgreSQL itself"]
    {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn a_pooler_is_named_and_nothing_is_set_on_its_sessions() {
    let cluster = Cluster::start().await;
    cluster.app(MEMORIA).await;
    let (port, said) = pooler(&cluster).await;
    is_clear(&inspected(&cluster, port).await, port);
    let said = said.lock().unwrap();
    let (asked, other): (Vec<_>, Vec<_>) = said.iter().partition(|text| text.contains("pg_backend_pid()"));
    assert!(asked.len() >= 2, "{said:?}");
    assert!(other.iter().all(|text| text.is_empty()), "more than a question was asked: {other:?}");
}

#[tokio::test]
async fn a_pooler_that_refuses_startup_parameters_is_named_too() {
    let cluster = Cluster::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let refusal = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
            if greet(&mut client).await.is_some() {
                let _ = client.write_all(&of(b'E', refusal)).await;
            }
        }
    });
    is_clear(&inspected(&cluster, port).await, port);
}
