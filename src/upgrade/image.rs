//! Image references: `[registry[:port]/]repository[:tag][@digest]`.

use std::{fmt, str::FromStr};

/// A parsed reference; nothing is added that was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no image: write repository:tag, e.g. registry.arca.run/memoria/server:1.0.0")]
pub struct BadImage(String);

impl FromStr for ImageRef {
    type Err = BadImage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        // A colon before the last slash is a port.
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag.to_owned())),
            _ => (name, None),
        };
        let empty = |part: &Option<String>| part.as_ref().is_some_and(String::is_empty);
        if repository.is_empty() || empty(&tag) || empty(&digest) || text.contains(char::is_whitespace) {
            return Err(BadImage(text.to_owned()));
        }
        Ok(Self { repository: repository.to_owned(), tag, digest })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The digest in a kubelet's `imageID`, e.g. `registry/name@sha256:…`; `None` for an id that no registry knows.
pub fn digest_of(image_id: &str) -> Option<&str> {
    let id = image_id.strip_prefix("docker-pullable://").unwrap_or(image_id);
    id.split_once('@').map(|(_, digest)| digest).filter(|digest| digest.starts_with("sha256:"))
}

#[cfg(test)]
mod tests {
    use super::{ImageRef, digest_of};

    #[test]
    fn a_reference_is_read_in_all_its_forms() {
        for (text, repository, tag, digest) in [
            ("memoria", "memoria", None, None),
            ("registry:5000/memoria/server", "registry:5000/memoria/server", None, None),
            ("registry:5000/memoria/server:1.0.0", "registry:5000/memoria/server", Some("1.0.0"), None),
            ("r/s:1@sha256:ab", "r/s", Some("1"), Some("sha256:ab")),
            ("r/s@sha256:ab", "r/s", None, Some("sha256:ab")),
        ] {
            let image: ImageRef = text.parse().unwrap();
            assert_eq!(
                (image.repository.as_str(), image.tag.as_deref(), image.digest.as_deref()),
                (repository, tag, digest)
            );
            assert_eq!(image.to_string(), text);
        }
        for text in ["", ":1", "r/s:", "r/s@", "r s:1"] {
            assert!(text.parse::<ImageRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_kubelets_image_id_gives_the_registrys_digest() {
        assert_eq!(digest_of("r/s@sha256:ab"), Some("sha256:ab"));
        assert_eq!(digest_of("docker-pullable://r/s@sha256:ab"), Some("sha256:ab"));
        assert_eq!(digest_of("sha256:ab"), None);
    }
}
