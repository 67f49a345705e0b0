//! Records that are published again: the same JSON, with the next attempt (contract section 2).
//!
//! What the record says otherwise stays as it was, byte for byte: unknown fields, numbers of any
//! form.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::{RawValue, to_raw_value};

use crate::base::TargetType;

const SIMULATE_FAILURE: &str = "simulateFailure";

/// What is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Again<'a> {
    pub attempt: u32,
    /// The checkpoint of the partition that it goes to.
    pub after: u64,
    /// The audience that an older producer's group event lacks.
    pub audience: Option<(TargetType, &'a [String])>,
    /// Test mode: serving it is to fail no more.
    pub is_mended: bool,
}

/// The value to publish. Fails only with what is no JSON object.
pub fn again(value: &[u8], again: &Again<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let mut fields: BTreeMap<Cow<'_, str>, Cow<'_, RawValue>> = BTreeMap::new();
    for (name, field) in serde_json::from_slice::<BTreeMap<Cow<'_, str>, &RawValue>>(value)? {
        fields.insert(name, Cow::Borrowed(field));
    }
    let mut set = |name: &'static str, field: Box<RawValue>| {
        fields.insert(Cow::Borrowed(name), Cow::Owned(field));
    };
    set("attempt", to_raw_value(&again.attempt)?);
    set("after", to_raw_value(&again.after)?);
    if let Some((kind, names)) = again.audience {
        set("targetType", to_raw_value(&kind)?);
        set("targetIds", to_raw_value(names)?);
    }
    if again.is_mended && fields.contains_key(SIMULATE_FAILURE) {
        fields.insert(Cow::Borrowed(SIMULATE_FAILURE), Cow::Owned(to_raw_value(&false)?));
    }
    serde_json::to_vec(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_changed() {
        let value = br#"{"eventId":"e","timestamp":1795514400.123456789,"n":1e400,"attempt":3,
            "x":{"b":1,"a":[null]},"q\"":"\u0041","userId":null}"#;
        let names = ["ops".to_owned()];
        let audience = Some((TargetType::Role, names.as_slice()));
        let made = again(value, &Again { attempt: 4, after: 17, audience, is_mended: true })
            .expect("an object");
        let expected = concat!(
            r#"{"after":17,"attempt":4,"eventId":"e","n":1e400,"q\"":"\u0041","#,
            r#""targetIds":["ops"],"targetType":"ROLE","timestamp":1795514400.123456789,"#,
            r#""userId":null,"x":{"b":1,"a":[null]}}"#
        );
        assert_eq!(String::from_utf8(made).expect("UTF-8"), expected);
        for bad in ["", "[]", "null", "{"] {
            let plain = Again { attempt: 1, after: 0, audience: None, is_mended: true };
            assert!(again(bad.as_bytes(), &plain).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_simulated_failure_ends_where_it_is_said() {
        let value = br#"{"simulateFailure":true}"#;
        for (is_mended, flag) in [(true, "false"), (false, "true")] {
            let changed = Again { attempt: 1, after: 0, audience: None, is_mended };
            let made = again(value, &changed).expect("an object");
            let expected = format!(r#"{{"after":0,"attempt":1,"simulateFailure":{flag}}}"#);
            assert_eq!(String::from_utf8(made).expect("UTF-8"), expected);
        }
    }
}
