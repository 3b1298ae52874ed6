//! Headers of one hop, which whoever passes a message on leaves out (RFC 9110 §7.6.1).

use std::borrow::Cow;

use hyper::header::{self, HeaderMap, HeaderName};

/// Those that RFC 9110 §7.6.1 names, and the older ones that are still sent. `Trailer` only announces fields, so it is kept by
/// those who keep trailers.
const OF_ONE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes them: the fixed names, also where `_` stands for `-`, and those that `Connection` lists.
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
    remove_if(
        headers,
        |name| matches!(name, Cow::Owned(name) if OF_ONE_HOP.iter().any(|hop| hop == name.as_str())),
    );
}

/// Removes the headers with such a name, which is given as CGI and WSGI make a variable of it: with `-` for `_`. Then it is
/// [`Cow::Owned`].
pub fn remove_if(headers: &mut HeaderMap, is: impl Fn(&Cow<'_, str>) -> bool) {
    let such = |name: &&HeaderName| {
        let name = name.as_str();
        is(&if name.contains('_') { name.replace('_', "-").into() } else { name.into() })
    };
    let names: Vec<HeaderName> = headers.keys().filter(such).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn what_is_of_one_hop_goes_however_it_is_spelt_and_nothing_else() {
        let mut headers = HeaderMap::new();
        for name in
            ["te", "keep_alive", "transfer_encoding", "proxy-authorization", "x_kept", "trailer", "x-listed"]
        {
            headers.append(name, HeaderValue::from_static("v"));
        }
        headers.append(header::CONNECTION, HeaderValue::from_static("X-Listed, host"));
        headers.append(header::HOST, HeaderValue::from_static("h"));
        remove(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "trailer", "x_kept"]);
    }
}
