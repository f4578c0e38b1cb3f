//! One GET request: no redirects, no proxy, no credentials of ours, nothing from addresses where clouds keep theirs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, HeaderName, HeaderValue},
};

use crate::api::release::CANDIDATE_HOST;

/// To a connection, and to the whole answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// A larger answer is refused.
const MAX_BODY: usize = 1 << 20;

/// Why there is no answer. Shows neither path nor query of the URL, and no header's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error(
        "http.url is no http or https URL with a host; write a whole one, e.g. http://memoria-server:8000/settings"
    )]
    BadUrl,
    #[error("header {0} has no value; look at the Secret in http.headersFrom")]
    NoHeader(String),
    #[error("header {0} cannot be sent: name or value has characters that no header may have")]
    BadHeader(String),
    #[error("{host} is {address}, an address of the node or the cloud, which checks do not ask")]
    Forbidden { host: String, address: IpAddr },
    #[error("{host} cannot be asked: {why}")]
    Failed { host: String, why: String },
    #[error("{host} sent more than {} MiB", MAX_BODY >> 20)]
    TooLarge { host: String },
    #[error("the HTTP client cannot be made: {0}")]
    NoClient(String),
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub status: u16,
    /// Null when it is no JSON.
    pub body: serde_json::Value,
    /// When it was given, in seconds since 1970: by the server's clock where it tells, else by ours.
    pub at: f64,
}

/// A request that can be made again and again.
pub struct Request {
    client: Client,
    url: Url,
    host: String,
}

impl Request {
    /// The host `candidate` stands for that address, where one is given.
    ///
    /// # Errors
    /// [`RequestError`] for what no later answer can mend.
    pub fn new(
        url: &str,
        headers: &[(String, Option<String>)],
        candidate: Option<IpAddr>,
    ) -> Result<Self, RequestError> {
        let mut url = Url::parse(url).map_err(|_| RequestError::BadUrl)?;
        let Some(address) = candidate.filter(|_| url.host_str() == Some(CANDIDATE_HOST)) else {
            return Self::build(url, headers);
        };
        url.set_ip_host(address).map_err(|()| RequestError::BadUrl)?;
        let request = Self::build(url, headers)?;
        Ok(Self { host: CANDIDATE_HOST.to_owned(), ..request })
    }

    /// An instant query of Prometheus' HTTP API below `base`.
    ///
    /// # Errors
    /// [`RequestError`] for what no later answer can mend.
    pub fn query(base: &str, query: &str, headers: &[(String, Option<String>)]) -> Result<Self, RequestError> {
        let mut url = Url::parse(base).map_err(|_| RequestError::BadUrl)?;
        url.path_segments_mut().map_err(|()| RequestError::BadUrl)?.pop_if_empty().extend(["api", "v1", "query"]);
        url.query_pairs_mut().append_pair("query", query);
        Self::build(url, headers)
    }

    fn build(url: Url, headers: &[(String, Option<String>)]) -> Result<Self, RequestError> {
        let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")).ok_or(RequestError::BadUrl)?;
        let host = host.to_owned();
        // The resolver is not asked for addresses.
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>()
            && is_forbidden(address)
        {
            return Err(RequestError::Forbidden { host, address });
        }
        let client = Client::builder()
            .user_agent(concat!("memoria-operator/", env!("CARGO_PKG_VERSION")))
            .default_headers(header_map(headers)?)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(std::sync::Arc::new(Resolver))
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            // Each sample is of the service as it is now, not of a connection from before.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| RequestError::NoClient(innermost(&error)))?;
        Ok(Self { client, url, host })
    }

    /// # Errors
    /// [`RequestError`] when no answer comes that could be judged.
    pub async fn ask(&self) -> Result<Response, RequestError> {
        let failed = |error: reqwest::Error| {
            let why = if error.is_timeout() { "no answer in time".to_owned() } else { innermost(&error) };
            RequestError::Failed { host: self.host.clone(), why }
        };
        let too_large = || RequestError::TooLarge { host: self.host.clone() };
        let mut response = self.client.get(self.url.clone()).send().await.map_err(failed)?;
        if response.content_length().is_some_and(|bytes| bytes > MAX_BODY as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        let body = serde_json::from_slice(&body).unwrap_or(serde_json::Value::Null);
        let at = dated(response.headers()).unwrap_or_else(now);
        Ok(Response { status: response.status().as_u16(), body, at })
    }

    /// The host that is asked, as the URL names it.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// Our own clock, in seconds since 1970.
pub fn now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

/// The header `Date`.
fn dated(headers: &HeaderMap) -> Option<f64> {
    let text = headers.get(reqwest::header::DATE)?.to_str().ok()?;
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(at.as_duration().as_secs_f64())
}

fn header_map(headers: &[(String, Option<String>)]) -> Result<HeaderMap, RequestError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let value = value.as_deref().ok_or_else(|| RequestError::NoHeader(name.clone()))?;
        let bad = || RequestError::BadHeader(name.clone());
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        // Secrets made from files end with a line break.
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
        value.set_sensitive(true);
        map.insert(header, value);
    }
    Ok(map)
}

/// The cause itself; what reqwest puts around it has the URL in it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string().chars().take(160).collect()
}

struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One bad address of several is enough: which one is asked is not ours to choose.
            if let Some(bad) = found.iter().find(|address| is_forbidden(address.ip())) {
                let error = RequestError::Forbidden { host: name.as_str().to_owned(), address: bad.ip() };
                return Err(error.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Link-local addresses, and those outside that range at which clouds serve metadata and credentials.
fn is_forbidden(address: IpAddr) -> bool {
    const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    const ORACLE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 192);
    const AWS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    const GOOGLE: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
    let v4 = |address: Ipv4Addr| {
        address.is_link_local()
            || address.is_unspecified()
            || address.is_multicast()
            || address.is_broadcast()
            || [AZURE, ALIBABA, ORACLE].contains(&address)
    };
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => {
            let [a, b, .., high, low] = address.segments();
            let inner = Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
            // NAT64 and 6to4 carry an IPv4 address too.
            let carries_v4 = address.to_ipv4().is_some() || (a == 0x64 && b == 0xff9b);
            let six_to_four = {
                let [_, high, low, ..] = address.segments();
                Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
            };
            address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || [AWS, GOOGLE].contains(&address)
                || (carries_v4 && !address.is_loopback() && v4(inner))
                || (a == 0x2002 && v4(six_to_four))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Request, RequestError, is_forbidden};

    #[test]
    fn addresses_of_nodes_and_clouds_are_not_asked() {
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "168.63.129.16",
            "100.100.100.200",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::",
            "ff02::1",
        ] {
            assert!(is_forbidden(address.parse().unwrap()), "{address}");
        }
        for address in ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "2001:db8::1"] {
            assert!(!is_forbidden(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn an_address_in_the_url_is_refused_however_it_is_written() {
        for url in ["http://169.254.169.254/x", "http://0xa9fea9fe/", "http://2852039166/", "http://[fe80::1]/"] {
            let refused = Request::new(url, &[], None).err().unwrap();
            assert!(matches!(refused, RequestError::Forbidden { .. }), "{url}: {refused}");
        }
        assert_eq!(Request::new("ftp://x/", &[], None).err().unwrap(), RequestError::BadUrl);
        assert_eq!(Request::new("http:///settings", &[], None).err(), Request::new("http://settings", &[], None).err());
    }

    #[test]
    fn a_header_without_a_sendable_value_is_named_but_not_shown() {
        let header = |value: Option<&str>| vec![("X-API-Key".to_owned(), value.map(str::to_owned))];
        let absent = Request::new("http://localhost/", &header(None), None).err().unwrap();
        assert_eq!(absent, RequestError::NoHeader("X-API-Key".to_owned()));
        let bad = Request::new("http://localhost/", &header(Some("a\nb")), None).err().unwrap().to_string();
        assert!(bad.contains("X-API-Key") && !bad.contains("a\nb"));
    }
}
