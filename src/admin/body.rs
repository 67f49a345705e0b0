//! The body of a create, read into the few values that a draft looks at.
//!
//! A body of 32 MiB could hold sixteen million numbers where nobody looks, and each would take more
//! memory than its text. So unknown fields are checked and skipped, and of known ones only what may
//! be right is kept. A field that stands twice is refused: two readers of one body could take
//! different ones.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The fields of a create, as the contract names them.
const FIELDS: [&str; 11] = [
    "content",
    "targetType",
    "targetIds",
    "senderId",
    "senderName",
    "priority",
    "category",
    "scheduledAt",
    "expiresAt",
    "fireAndForget",
    "isFireAndForget",
];

/// Reads a body that must be JSON.
pub(super) fn read(body: &[u8]) -> serde_json::Result<Value> {
    // Also where it is skipped.
    let text = std::str::from_utf8(body).map_err(serde_json::Error::custom)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Keep::Fields.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// What is kept of a value. Arrays and objects of which nothing is kept come back empty.
#[derive(Clone, Copy)]
enum Keep {
    /// Of an object, the known fields.
    Fields,
    /// Of an array, its texts, up to the first entry that is none, which comes last.
    Texts,
    /// Numbers, texts, flags.
    Plain,
}

impl Keep {
    fn of(field: &str) -> Self {
        if field == "targetIds" { Self::Texts } else { Self::Plain }
    }
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
            if !matches!(self, Self::Fields) || !FIELDS.contains(&&*name) {
                fields.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = fields.next_value_seed(Self::of(&name))?;
            if kept.insert(name.clone().into_owned(), value).is_some() {
                return Err(A::Error::custom(format_args!("{name} is given twice")));
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        let mut keeps = matches!(self, Self::Texts);
        while keeps && let Some(item) = items.next_element_seed(Self::Plain)? {
            keeps = item.is_string();
            kept.push(item);
        }
        while !keeps && items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(kept))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::from(flag))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_text(body: &str) -> Result<Value, String> {
        read(body.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_draft_looks_at_is_kept() {
        let body = json!({
            "content": "x", "targetType": "SELECTED", "targetIds": ["a", "b"], "senderId": null,
            "priority": 5, "fireAndForget": true, "expiresAt": -1.5,
        });
        assert_eq!(read_text(&body.to_string()), Ok(body));
    }

    #[test]
    fn what_nobody_looks_at_is_not() {
        for (body, kept) in [
            (r#"{"other":[1,{"a":[2]}],"content":"x"}"#, json!({"content": "x"})),
            (r#"{"content":[1,2],"category":{"a":1}}"#, json!({"content": [], "category": {}})),
            (r#"{"targetIds":["a",1,"b",[2]]}"#, json!({"targetIds": ["a", 1]})),
            (r#"{"targetIds":[["a"],"b"]}"#, json!({"targetIds": [[]]})),
            (r#"{"targetIds":{"a":1}}"#, json!({"targetIds": {}})),
            (r#"{"a":1,"a":2}"#, json!({})),
            ("[1,2]", json!([])),
            ("7", json!(7)),
        ] {
            assert_eq!(read_text(body), Ok(kept), "{body}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (body, part) in [
            ("", "EOF"),
            ("{}{}", "trailing"),
            (r#"{"content":"a","content":"b"}"#, "content is given twice"),
            (r#"{"content":"a","\u0063ontent":"b"}"#, "content is given twice"),
            (r#"{"content":"a","content":null}"#, "content is given twice"),
            (r#"{"content":"\ud800"}"#, "escape"),
            (r#"{"content":1e999}"#, "out of range"),
            (r#"{"other":[1,}"#, "expected"),
        ] {
            let error = read_text(body).expect_err(body);
            assert!(error.contains(part), "{body}: {error}");
        }
        assert!(read(b"{\"content\":\"\xff\"}").is_err());
        assert!(read(b"{\"other\":\"\xff\"}").is_err());
        let deep = [b"{\"other\":".as_slice(), &b"[".repeat(1 << 20), &b"]".repeat(1 << 20), b"}"];
        assert!(read(&deep.concat()).is_ok(), "what is skipped takes no stack");
    }
}
