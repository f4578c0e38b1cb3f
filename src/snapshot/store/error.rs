//! Why a bucket did not do what was asked: cause and what to do next. What the storage answers is cut to its code and message:
//! no header and no address with a signature is told.

use std::error::Error as _;

use crate::api::upgrade::Category;

/// What is told of an answer at most, in characters.
const TOLD: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("this is no place in a bucket: {what}; write s3://bucket/prefix")]
    Url { what: String },
    #[error(
        "the settings of the S3 storage cannot be used: {what}; correct the AWS_ variables, docs/snapshots.md has a list"
    )]
    Settings { what: String },
    #[error("while {doing} {object}: {cause}; {}", kind.advice())]
    Request { doing: &'static str, object: String, kind: Kind, cause: String },
    #[error("{object} holds other bytes already; an export is never overwritten, name another prefix")]
    Occupied { object: String },
    #[error(
        "{object} needs more than {parts} parts of {part_mib} MiB, and S3 takes no more; export again with a larger --part-size"
    )]
    TooLarge { object: String, parts: usize, part_mib: usize },
    #[error(
        "{object} names no upload that can be ended: {what}; look whose it is, end the upload by hand (`aws s3api list-multipart-uploads`) and remove that object"
    )]
    Journal { object: String, what: String },
}

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Credentials,
    Denied,
    NoBucket,
    Region,
    NoUpload,
    Clock,
    Missing,
    /// No answer, or one that says that it cannot now; it was tried again several times.
    Unreachable,
    /// The storage refuses what was asked.
    Refused,
}

impl Kind {
    fn advice(self) -> &'static str {
        match self {
            Self::Credentials => {
                "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, where there is one)"
            }
            Self::Denied => {
                "grant s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on all below the prefix"
            }
            Self::NoBucket => "make the bucket, or correct its name, AWS_REGION or AWS_ENDPOINT_URL",
            Self::Region => "set AWS_REGION to the bucket's",
            Self::NoUpload => {
                "another export or prune of the same prefix ended this upload; have one at a time, and run it again"
            }
            Self::Clock => "set this machine's clock",
            Self::Missing => "somebody removed or replaced it meanwhile, or it never was there",
            Self::Unreachable => {
                "it was tried several times; check AWS_ENDPOINT_URL, AWS_REGION, the network, the storage's health and where the credentials come from, then run it again"
            }
            Self::Refused => "see the storage's own log for why",
        }
    }
}

impl StoreError {
    /// What the client says of a request.
    pub(super) fn request(doing: &'static str, object: String) -> impl FnOnce(object_store::Error) -> Self {
        move |error| {
            let (kind, cause) = read(&error);
            Self::Request { doing, object, kind, cause }
        }
    }

    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Request { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    pub fn category(&self) -> Category {
        match self {
            Self::Request { kind: Kind::Unreachable, .. } => Category::Transient,
            Self::Request { kind: Kind::NoUpload, .. } | Self::Occupied { .. } => Category::Conflict,
            _ => Category::Environment,
        }
    }

    /// CamelCase, for a report.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Url { .. } | Self::Settings { .. } => "StorageSettingsInvalid",
            Self::Request { kind: Kind::Credentials | Kind::Denied, .. } => "StorageRefused",
            Self::Request { kind: Kind::Unreachable, .. } => "StorageUnreachable",
            Self::Occupied { .. } => "DirectoryNotEmpty",
            Self::Request { .. } | Self::TooLarge { .. } | Self::Journal { .. } => "StorageFailed",
        }
    }
}

/// S3's code for what went wrong, where it said one.
pub(super) fn code(error: &object_store::Error) -> Option<String> {
    between(&error.to_string(), "Code").map(str::to_owned)
}

fn read(error: &object_store::Error) -> (Kind, String) {
    let text = error.to_string();
    if let Some(code) = between(&text, "Code") {
        let cause = format!("{code}: {}", between(&text, "Message").unwrap_or_default());
        return (kind(code), told(cause.trim_end_matches([':', ' '])));
    }
    let kind = match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Kind::Denied,
        object_store::Error::NotFound { .. } => Kind::Missing,
        _ if text.contains("redirect") => Kind::Region,
        _ if text.contains(" 4") && text.contains("non-2xx") => Kind::Refused,
        _ => Kind::Unreachable,
    };
    (kind, told(&innermost(error)))
}

fn kind(code: &str) -> Kind {
    match code {
        "InvalidAccessKeyId"
        | "NotSignedUp"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "TokenRefreshRequired" => Kind::Credentials,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Kind::Denied,
        "NoSuchBucket" => Kind::NoBucket,
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" => Kind::Region,
        "NoSuchUpload" => Kind::NoUpload,
        "RequestTimeTooSkewed" => Kind::Clock,
        "NoSuchKey" | "PreconditionFailed" => Kind::Missing,
        "InternalError" | "ServiceUnavailable" | "SlowDown" | "RequestTimeout" => Kind::Unreachable,
        _ => Kind::Refused,
    }
}

/// What stands in the first element of this name.
fn between<'a>(text: &'a str, element: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{element}>"))?;
    rest.split_once(&format!("</{element}>")).map(|(inner, _)| inner)
}

/// What lies at the bottom of an error: those above it repeat it with the request's address.
fn innermost(error: &object_store::Error) -> String {
    let mut source = error.source();
    let mut text = error.to_string();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

/// One line that is not too long.
fn told(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(TOLD).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn an_answer_is_told_by_its_code_and_message_alone() {
        let answer = "Error performing PUT http://x/y?uploadId=7 - Server returned non-2xx status code: 403 Forbidden: \
            <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>It is\n another one</Message>\
            <AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>AWS4</StringToSign></Error>";
        let error = StoreError::request("writing", "s3://b/k".to_owned())(generic(answer));
        assert_eq!((error.kind(), error.reason()), (Some(Kind::Credentials), "StorageRefused"));
        let text = error.to_string();
        assert!(
            text.starts_with("while writing s3://b/k: SignatureDoesNotMatch: It is another one; correct AWS_"),
            "{text}"
        );
    }

    #[test]
    fn an_answer_without_a_code_is_cut_to_a_line() {
        let page =
            format!("Server returned non-2xx status code: 503 Service Unavailable: <html>\n{}", "x ".repeat(900));
        let error = StoreError::request("reading", "s3://b/k".to_owned())(generic(&page));
        assert_eq!(error.category(), Category::Transient);
        assert!(error.to_string().len() < 700 && !error.to_string().contains('\n'), "{error}");
    }

    #[test]
    fn each_kind_says_what_to_do() {
        for (code, wanted) in [
            ("AccessDenied", "s3:PutObject"),
            ("NoSuchBucket", "make the bucket"),
            ("AuthorizationHeaderMalformed", "AWS_REGION"),
            ("NoSuchUpload", "one at a time"),
            ("RequestTimeTooSkewed", "clock"),
            ("SlowDown", "run it again"),
            ("InvalidRequest", "own log"),
        ] {
            let error = StoreError::request("writing", "s3://b/k".to_owned())(generic(&format!("<Code>{code}</Code>")));
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
