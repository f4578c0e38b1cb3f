//! Exports that are encrypted at rest, as people type it, in a directory and in a bucket.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use age::{
    secrecy::ExposeSecret,
    x25519::{Identity, Recipient},
};
use http::Method;
use memoria_operator::snapshot::sha256_hex;
use serde_json::{Value, json};

use crate::{
    s3::{S3, damage, url},
    site::{MEMORIA, Site},
};

/// A value that nothing but the rows holds.
const PERSONAL: &str = "Ada Lovelace";

/// A site, a storage, and the files with two identities.
struct Desk {
    s3: S3,
    site: Site,
    right: PathBuf,
    wrong: PathBuf,
    recipient: Recipient,
}

impl Desk {
    fn new() -> Self {
        let site = Site::with("delete", MEMORIA);
        site.execute(&format!("UPDATE agents SET name = '{PERSONAL}' WHERE agent_id = 'a1'"));
        let (right, wrong) = (Identity::generate(), Identity::generate());
        let write = |name: &str, identity: &Identity| {
            let path = site.data.join(name);
            fs::write(&path, format!("# an identity\n{}\n", identity.to_string().expose_secret())).unwrap();
            path
        };
        let (recipient, files) = (right.to_public(), (write("right.key", &right), write("wrong.key", &wrong)));
        Self { s3: S3::start(), site, right: files.0, wrong: files.1, recipient }
    }

    fn run(&self, arguments: &[&str], identity: Option<&Path>) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
        command.arg("snapshot").args(arguments).env("MEMORIA_OPERATOR_DATABASE_URL", self.site.url());
        command.env_remove("MEMORIA_OPERATOR_IDENTITY_FILE");
        self.s3.name_to(&mut command);
        if let Some(path) = identity {
            command.arg("--identity-file").arg(path);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        for path in [&self.right, &self.wrong] {
            let secret = fs::read_to_string(path).unwrap();
            assert!(!text.contains(secret.lines().last().unwrap()), "{text}");
        }
        (output.status.code().unwrap(), text)
    }

    #[track_caller]
    fn done(&self, arguments: &[&str], identity: Option<&Path>) -> String {
        let (code, text) = self.run(arguments, identity);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], identity: Option<&Path>, reasons: &[&str]) {
        let (code, text) = self.run(arguments, identity);
        assert_eq!(code, 1, "{arguments:?}: {text}");
        for reason in reasons {
            assert!(text.contains(reason), "{reason}: {text}");
        }
    }

    fn export(&self, place: &str, how: &[&str]) {
        let recipient = self.recipient.to_string();
        self.done(&[&["export", place, "--recipient", &recipient], how].concat(), None);
    }

    /// A place in a directory and one in the bucket, and where each one's files lie.
    fn places(&self, name: &str) -> [(String, PathBuf); 2] {
        let directory = self.site.storage.join(name);
        [(directory.to_str().unwrap().to_owned(), directory), (url(name), self.s3.object(name))]
    }
}

fn holds(directory: &Path, text: &str) -> bool {
    fs::read_dir(directory).unwrap().any(|file| {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[test]
fn an_encrypted_export_comes_back_in_every_form_and_place() {
    let desk = Desk::new();
    let open = desk.site.storage.join("open");
    desk.done(&["export", open.to_str().unwrap(), "--compress", "none"], None);
    assert!(holds(&open, PERSONAL));
    for (number, (format, compress)) in [("ndjson", "none"), ("json", "zstd"), ("ndjson", "zstd")].iter().enumerate() {
        for (place, files) in desk.places(&number.to_string()) {
            desk.export(&place, &["--format", format, "--compress", compress]);
            // Only the manifest can be read, and of people it tells nothing.
            assert!(!holds(&files, PERSONAL) && !holds(&files, "CREATE") && holds(&files, "dataDigest"));
            let manifest: Value = serde_json::from_slice(&fs::read(files.join("manifest.json")).unwrap()).unwrap();
            let recipients = [desk.recipient.to_string()];
            assert_eq!(manifest["encryption"], json!({"format": "age-encryption.org/v1", "recipients": recipients}));
            for (name, stored) in manifest["files"].as_object().unwrap() {
                assert!(name.ends_with(".age"));
                assert_eq!(stored["sha256"], sha256_hex(fs::read(files.join(name)).unwrap()).as_str());
            }

            let shown = desk.done(&["show", &place], None);
            assert!(shown.contains(&format!("encrypted to {}", desk.recipient)), "{shown}");
            assert_eq!(desk.done(&["show", &place], Some(&desk.right)), shown);
            assert_eq!(desk.done(&["verify", "-", &place], Some(&desk.right)), "The same: 299 rows in 3 tables\n");
            assert!(desk.done(&["list", &place], None).trim_end().ends_with("(encrypted)"));
            desk.site.execute("DELETE FROM agents");
            let imported = desk.done(&["import", &place], Some(&desk.right));
            assert!(imported.contains("every digest is the export's"), "{imported}");
            desk.done(&["verify", open.to_str().unwrap(), &place], Some(&desk.right));
            desk.done(&["verify", open.to_str().unwrap(), "-"], Some(&desk.right));
        }
    }
    // A file by itself, and the variable in the flag's place.
    let file = desk.site.storage.join("2/memoria.ndjson.zst.age");
    desk.refused(&["import", file.to_str().unwrap()], None, &["is encrypted, and no identity is given"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
    command.args(["snapshot", "import"]).arg(&file).env("MEMORIA_OPERATOR_DATABASE_URL", desk.site.url());
    let output = command.env("MEMORIA_OPERATOR_IDENTITY_FILE", &desk.right).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("nothing could be proved"));
    // Old ones go without a key.
    let pruned = desk.done(&["prune", &url(""), "--keep", "1"], None);
    assert_eq!(pruned.matches("removed ").count(), 2, "{pruned}");
    assert_eq!([0, 1, 2].map(|number| desk.s3.names(&number.to_string()).len()), [0, 0, 4]);
}

#[test]
fn without_the_right_identity_nothing_is_read_or_changed() {
    let desk = Desk::new();
    let to = desk.recipient.to_string();
    for (place, _) in desk.places("x") {
        desk.export(&place, &[]);
        let before = fs::read(desk.site.database()).unwrap();
        let missing = [to.as_str(), "no identity is given", "--identity-file", "nothing was changed"];
        let wrong = [to.as_str(), "no identity that is given is one of theirs", "--identity-file"];
        for arguments in [["import", &place].as_slice(), &["verify", &place, "-"]] {
            desk.refused(arguments, None, &missing);
            desk.refused(arguments, Some(&desk.wrong), &wrong);
        }
        desk.refused(&["show", &place], Some(&desk.wrong), &wrong);
        desk.refused(&["import", &place], Some(&desk.site.data.join("none.key")), &["none.key"]);
        assert_eq!(fs::read(desk.site.database()).unwrap(), before);
    }
    // Each object was read back once by the export; keys were compared before anything else.
    assert_eq!(desk.s3.count(Method::GET, "x/memoria.ndjson.zst.age"), 1);
    // A key that is no public one is refused before there is a file.
    let secret = fs::read_to_string(&desk.right).unwrap();
    let arguments = ["export", &url("y"), "--recipient", secret.lines().last().unwrap()];
    desk.refused(&arguments, None, &["no age X25519 public key"]);
    desk.refused(&["export", &url("y"), "--recipients-file", desk.right.to_str().unwrap()], None, &["line 2"]);
    assert!(desk.s3.names("y").is_empty());
    // Several may read it.
    let file = desk.site.data.join("recipients");
    fs::write(&file, format!("# ours\n{to}\n{}\n", Identity::generate().to_public())).unwrap();
    desk.done(&["export", &url("y"), "--recipients-file", file.to_str().unwrap()], None);
    desk.done(&["import", &url("y")], Some(&desk.right));
}

#[test]
fn ciphertext_that_is_damaged_is_refused_even_where_the_manifest_agrees() {
    let desk = Desk::new();
    for (place, files) in desk.places("x") {
        desk.export(&place, &[]);
        let before = fs::read(desk.site.database()).unwrap();
        let manifest = files.join("manifest.json");
        let told = fs::read(&manifest).unwrap();
        for name in ["memoria.ndjson.zst.age", "others.ndjson.zst.age", "schema.json.age"] {
            let path = files.join(name);
            let whole = fs::read(&path).unwrap();
            for damaged in damage(&path) {
                fs::write(&path, &damaged).unwrap();
                desk.refused(&["import", &place], Some(&desk.right), &["is damaged", name]);
                desk.refused(&["show", &place], None, &["is damaged", name]);
                // Somebody who may write has the manifest agree.
                let mut agreeing: Value = serde_json::from_slice(&told).unwrap();
                agreeing["files"][name] = json!({"bytes": damaged.len(), "sha256": sha256_hex(&damaged)});
                fs::write(&manifest, agreeing.to_string()).unwrap();
                desk.done(&["show", &place], None);
                desk.refused(&["show", &place], Some(&desk.right), &[name]);
                desk.refused(&["import", &place], Some(&desk.right), &[name]);
                fs::write(&manifest, &told).unwrap();
            }
            fs::write(&path, whole).unwrap();
        }
        assert_eq!(fs::read(desk.site.database()).unwrap(), before);
        desk.done(&["import", &place], Some(&desk.right));
    }
}
