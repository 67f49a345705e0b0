//! Who a user is with `auth.mode = "none"` (contract section 5): the query says so, and only
//! requests from this machine are believed.

use http::StatusCode;

use super::audience::Membership;
use crate::base::{UserId, UserIdError};
use crate::limits::contract as limits;
use crate::wire::archive::MemberKind;

/// Fields by which a proxy tells whom it speaks for.
const FORWARDED: [&str; 5] =
    ["forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip"];
const FORWARDED_PREFIX: &str = "x-forwarded-";

/// A user and what he is a member of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub user: UserId,
    /// Sorted, without repeats.
    pub members: Vec<Membership>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AccessError {
    #[error("userId is missing")]
    NoUser,
    #[error("{0} is given twice")]
    Twice(&'static str),
    #[error("userId {0}")]
    User(UserIdError),
    #[error("{0} holds a name that is empty, too long, or has control characters")]
    Name(&'static str),
    #[error("more than {} roles, groups and products", limits::MEMBERSHIPS_MAX)]
    TooMany,
    #[error(
        "with auth.mode = \"none\" only requests from this machine are taken; this one came \
         through a proxy or asks for another host (auth.allow_anonymous = true takes all)"
    )]
    NotLocal,
}

impl AccessError {
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::NotLocal => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Reads `userId`, `roles`, `groups`, `products` (comma lists) from decoded query pairs.
pub fn identify<'a>(
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Identity, AccessError> {
    let mut user = None;
    let mut lists: [Option<&str>; MemberKind::COUNT] = [None; MemberKind::COUNT];
    const NAMES: [(&str, MemberKind); MemberKind::COUNT] = [
        ("roles", MemberKind::Role),
        ("groups", MemberKind::Group),
        ("products", MemberKind::Product),
    ];
    for (name, value) in pairs {
        if name == "userId" {
            if user.replace(value).is_some() {
                return Err(AccessError::Twice("userId"));
            }
        } else if let Some((name, kind)) = NAMES.iter().find(|(known, _)| *known == name)
            && lists[kind.number()].replace(value).is_some()
        {
            return Err(AccessError::Twice(name));
        }
    }
    let user = UserId::new(user.ok_or(AccessError::NoUser)?).map_err(AccessError::User)?;
    let mut members = Vec::new();
    for (name, kind) in NAMES {
        for item in lists[kind.number()].filter(|list| !list.is_empty()).into_iter() {
            for item in item.split(',') {
                if !is_name(item) {
                    return Err(AccessError::Name(name));
                }
                if members.len() == limits::MEMBERSHIPS_MAX {
                    return Err(AccessError::TooMany);
                }
                members.push(Membership { kind, name: item.into() });
            }
        }
    }
    members.sort_unstable();
    members.dedup();
    Ok(Identity { user, members })
}

/// A role, group, product, sender or category: 1 to 256 bytes without control characters.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= limits::NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

/// Refuses what did not come straight from this machine: a page that was rebound to this address
/// names its own host, and a proxy says whom it speaks for. `hosts` is what the request names: its
/// Host field (HTTP/1.0 may lack one), and the authority of a target in absolute form.
pub fn check_local<'a>(
    mut hosts: impl Iterator<Item = &'a str>,
    mut field_names: impl Iterator<Item = &'a str>,
) -> Result<(), AccessError> {
    let is_forwarded = field_names.any(|name| {
        FORWARDED.iter().any(|known| known.eq_ignore_ascii_case(name))
            || name
                .get(..FORWARDED_PREFIX.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(FORWARDED_PREFIX))
    });
    if is_forwarded || !hosts.all(is_loopback_host) {
        return Err(AccessError::NotLocal);
    }
    Ok(())
}

/// Whether a Host field names this machine: localhost, 127.0.0.0/8 or [::1], with or without port.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identify_text(query: &str) -> Result<Identity, AccessError> {
        identify(query.split('&').filter_map(|pair| pair.split_once('=')))
    }

    #[test]
    fn the_query_names_user_and_memberships() {
        let identity = identify_text("userId=u&roles=b,a,b&products=p&x=y").expect("valid");
        assert_eq!(identity.user.as_str(), "u");
        let names: Vec<_> =
            identity.members.iter().map(|member| (member.kind, &*member.name)).collect();
        let expected =
            [(MemberKind::Role, "a"), (MemberKind::Role, "b"), (MemberKind::Product, "p")];
        assert_eq!(names, expected);
        assert_eq!(identify_text("userId=u&roles=").expect("none").members, []);
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for (query, error) in [
            ("roles=a", AccessError::NoUser),
            ("userId=", AccessError::User(UserIdError::Empty)),
            ("userId=a&userId=b", AccessError::Twice("userId")),
            ("userId=a&roles=x&roles=y", AccessError::Twice("roles")),
            ("userId=a&groups=x,,y", AccessError::Name("groups")),
            ("userId=a&groups=x\u{7}", AccessError::Name("groups")),
        ] {
            assert_eq!(identify_text(query), Err(error), "{query}");
        }
        let many = format!("userId=a&roles={}", vec!["x"; 1_025].join(","));
        assert_eq!(identify_text(&many), Err(AccessError::TooMany));
    }

    #[test]
    fn only_this_machine_is_believed() {
        for (host, local) in [
            (Some("localhost"), true),
            (Some("LOCALHOST.:8080"), true),
            (Some("127.0.0.1:8080"), true),
            (Some("127.9.9.9"), true),
            (Some("[::1]:80"), true),
            (None, true),
            (Some("example.com"), false),
            (Some("localhost.example.com"), false),
            (Some("127.0.0.1.nip.io"), false),
            (Some("10.0.0.1"), false),
            (Some("[::2]"), false),
            (Some(""), false),
            (Some("0.0.0.0"), false),
        ] {
            assert_eq!(
                check_local(host.into_iter(), ["accept"].into_iter()).is_ok(),
                local,
                "{host:?}"
            );
        }
        for name in ["X-Forwarded-For", "x-forwarded-host", "Forwarded", "X-Real-IP", "Via"] {
            let hosts = || ["localhost"].into_iter();
            assert!(check_local(hosts(), [name].into_iter()).is_err(), "{name}");
        }
        let hosts = ["localhost", "example.com"].into_iter();
        assert!(check_local(hosts, ["accept"].into_iter()).is_err(), "every name counts");
    }
}
