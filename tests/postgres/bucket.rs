//! A PostgreSQL database in S3-compatible storage: two sessions upload at once.

use std::process::Command;

use http::{Method, StatusCode};

use crate::{
    cluster::{Cluster, MEMORIA, PASSWORD, PASSWORD_ENCODED},
    s3::{Fault, S3, SECRET, url},
};

/// Rows of 12 MiB that are in no table of Memoria's own tool: three parts of 5 MiB.
const LARGE: &str = "CREATE TABLE large AS SELECT i, (SELECT string_agg(md5((i * 100000 + j)::text), '')
    FROM generate_series(1, 32768) j) AS t FROM generate_series(1, 12) i";

fn snapshot(s3: &S3, cluster: &Cluster, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
    command.arg("snapshot").args(arguments).env("MEMORIA_OPERATOR_DATABASE_URL", cluster.url_text());
    s3.name_to(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!([SECRET, PASSWORD, PASSWORD_ENCODED].iter().all(|secret| !text.contains(secret)), "{text}");
    (output.status.success(), text)
}

#[tokio::test]
async fn a_database_goes_to_a_bucket_and_comes_back() {
    let (s3, cluster) = (S3::start(), Cluster::start().await);
    cluster.app(&format!("{MEMORIA}; {LARGE}")).await;
    let place = url("memoria/x");
    let export = ["export", &place, "--compress", "none", "--part-size", "5"];

    // One file is refused while the other is on its way: that one's upload is ended before anybody hears of it.
    s3.wrong(Method::PUT, "memoria/x/memoria.ndjson", usize::MAX, Fault::Answer(StatusCode::FORBIDDEN, "AccessDenied"));
    let (done, text) = snapshot(&s3, &cluster, &export);
    assert!(!done && text.contains("memoria/x/memoria.ndjson: AccessDenied"), "{text}");
    let left = s3.names("memoria/x");
    assert!(
        s3.parts() == 0 && !left.iter().any(|name| name.contains("upload") || name.contains("manifest")),
        "{left:?}"
    );

    s3.right();
    let (done, text) = snapshot(&s3, &cluster, &export);
    assert!(done && text.contains("every digest is the server's"), "{text}");
    assert!(s3.parts() == 0 && s3.count(Method::PUT, "others.ndjson?partNumber=3") > 0);
    cluster.app("DELETE FROM large WHERE i > 3; UPDATE teams SET name = 'other ' || team_id").await;
    assert!(!snapshot(&s3, &cluster, &["verify", &place, "-"]).0);
    let (done, text) = snapshot(&s3, &cluster, &["import", &place]);
    assert!(done && text.contains("every digest is the export's"), "{text}");
    let (done, text) = snapshot(&s3, &cluster, &["verify", &place, "-"]);
    assert!(done, "{text}");
}
