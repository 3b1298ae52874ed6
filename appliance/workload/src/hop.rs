//! Headers of one hop, which whoever passes a message on leaves out (RFC 9110 §7.6.1).

use hyper::header::{self, HeaderMap, HeaderName};

/// Those that RFC 9110 §7.6.1 names, and the older ones that are still sent.
const OF_ONE_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes them: the fixed names and those that `Connection` lists.
pub fn remove(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::try_from(token.trim()).ok())
        // The other side must not be able to have these removed by naming them.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in listed.iter().chain(&OF_ONE_HOP) {
        headers.remove(name);
    }
}
