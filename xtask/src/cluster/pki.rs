//! The cluster's certificates and kubeconfigs, made with openssl: one authority, P-256 keys.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::command;
use super::layout::{Layout, REGISTRY};

/// The cluster's state may be kept; a year is longer than anybody keeps it.
const DAYS: &str = "365";

/// A certificate to make. Every one serves and connects: nodes do both, and for the rest it does no harm here.
#[derive(Debug, PartialEq, Eq)]
struct Leaf {
    file: String,
    subject: String,
    alternative_names: String,
    /// Whether a kubeconfig goes with it.
    kubeconfig: bool,
}

fn leaves(layout: &Layout) -> Vec<Leaf> {
    let host = layout.host_address();
    let client = |file: &str, subject: &str| Leaf {
        file: file.into(),
        subject: subject.into(),
        alternative_names: format!("DNS:{file}"),
        kubeconfig: true,
    };
    let mut leaves = vec![
        Leaf {
            file: "apiserver".into(),
            subject: "/CN=kube-apiserver".into(),
            alternative_names: format!(
                "IP:127.0.0.1,IP:{host},IP:{},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
                 DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local",
                layout.api_service()
            ),
            kubeconfig: false,
        },
        Leaf {
            file: "registry".into(),
            subject: format!("/CN={REGISTRY}"),
            alternative_names: format!("IP:{host},DNS:{REGISTRY}"),
            kubeconfig: false,
        },
        client("admin", "/O=system:masters/CN=admin"),
        client("controller-manager", "/CN=system:kube-controller-manager"),
        client("scheduler", "/CN=system:kube-scheduler"),
        client("kube-proxy", "/CN=system:kube-proxy"),
        client("coredns", "/CN=system:coredns"),
    ];
    leaves.extend(layout.nodes.iter().map(|node| Leaf {
        file: node.name.into(),
        // The Node authorizer knows a kubelet by exactly this group and name.
        subject: format!("/O=system:nodes/CN=system:node:{}", node.name),
        alternative_names: format!("DNS:{},IP:{}", node.name, layout.node_address(node)),
        kubeconfig: true,
    }));
    leaves
}

/// Makes what is not there yet. Complete or absent: everything is made under another name and then moved.
pub fn ensure(layout: &Layout) -> Result<()> {
    let pki = layout.pki();
    if pki.exists() {
        return Ok(());
    }
    let partial = pki.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    fs::set_permissions(&partial, Permissions::from_mode(0o700))?;
    authority(&partial)?;
    for leaf in leaves(layout) {
        certificate(&partial, &leaf).with_context(|| format!("cannot make the certificate of {}", leaf.file))?;
        if leaf.kubeconfig {
            let kubeconfig = serde_json::to_string_pretty(&kubeconfig(layout, &leaf.file))?;
            fs::write(partial.join(format!("{}.kubeconfig", leaf.file)), kubeconfig)?;
        }
    }
    openssl(&partial, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out sa.key")?;
    openssl(&partial, "pkey -in sa.key -pubout -out sa.pub")?;
    fs::create_dir(partial.join("registry-ca"))?;
    fs::copy(partial.join("ca.crt"), partial.join("registry-ca/ca.crt"))?;
    fs::rename(&partial, &pki)?;
    Ok(())
}

fn authority(dir: &Path) -> Result<()> {
    openssl(dir, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ca.key")?;
    openssl(
        dir,
        &format!(
            "req -x509 -new -key ca.key -subj /CN=memoria-test-cluster -days {DAYS} -out ca.crt \
             -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature"
        ),
    )
}

fn certificate(dir: &Path, leaf: &Leaf) -> Result<()> {
    let Leaf { file, subject, alternative_names, .. } = leaf;
    openssl(dir, &format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {file}.key"))?;
    openssl(dir, &format!("req -new -key {file}.key -subj {subject} -out {file}.csr"))?;
    let extensions = format!("extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={alternative_names}\n");
    fs::write(dir.join(format!("{file}.ext")), extensions)?;
    openssl(
        dir,
        &format!(
            "x509 -req -in {file}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {DAYS} -extfile {file}.ext -out {file}.crt"
        ),
    )?;
    for spent in ["csr", "ext"] {
        fs::remove_file(dir.join(format!("{file}.{spent}")))?;
    }
    Ok(())
}

/// None of the arguments holds a space.
fn openssl(dir: &Path, args: &str) -> Result<()> {
    command::run(Command::new("openssl").args(args.split_whitespace()).current_dir(dir))?;
    Ok(())
}

/// With files beside it, by absolute path: every client resolves those alike.
fn kubeconfig(layout: &Layout, file: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": layout.name, "cluster": {
            "server": layout.api_url(), "certificate-authority": layout.pki_file("ca.crt"),
        }}],
        "users": [{"name": file, "user": {
            "client-certificate": layout.pki_file(&format!("{file}.crt")),
            "client-key": layout.pki_file(&format!("{file}.key")),
        }}],
        "contexts": [{"name": layout.name, "context": {"cluster": layout.name, "user": file}}],
        "current-context": layout.name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_is_named_the_way_the_node_authorizer_expects() {
        let leaves = leaves(&Layout::local().unwrap());
        let node = leaves.iter().find(|l| l.file == "node-b").unwrap();
        assert_eq!(node.subject, "/O=system:nodes/CN=system:node:node-b");
        assert_eq!(node.alternative_names, "DNS:node-b,IP:10.210.0.12");
    }

    #[test]
    fn the_api_server_is_known_by_its_service_address() {
        let leaves = leaves(&Layout::local().unwrap());
        assert!(leaves[0].alternative_names.contains("IP:10.212.0.1,"), "{}", leaves[0].alternative_names);
    }

    #[test]
    fn certificates_verify_against_the_authority_and_keys_stay_private() {
        let state = std::env::temp_dir().join(format!("memoria-pki-{}", std::process::id()));
        let layout = Layout { state: state.clone(), ..Layout::local().unwrap() };
        ensure(&layout).unwrap();
        for leaf in leaves(&layout) {
            openssl(&layout.pki(), &format!("verify -CAfile ca.crt {}.crt", leaf.file)).unwrap();
        }
        let before = fs::read(layout.pki_file("ca.crt")).unwrap();
        ensure(&layout).unwrap();
        assert_eq!(before, fs::read(layout.pki_file("ca.crt")).unwrap(), "a second call made another authority");
        assert_eq!(fs::metadata(layout.pki()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir_all(state).unwrap();
    }
}
