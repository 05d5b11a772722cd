//! Serde's view of an option.

use std::fmt::Display;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::Failure;
use super::tree::Node;
use crate::suggest::{self, Kind};

/// Deserializes the value of one key, or of the whole option.
pub(super) struct NodeDeserializer {
    node: Node,
    /// The path of the key; empty for the whole option.
    key: String,
}

impl NodeDeserializer {
    pub(super) fn new(node: Node) -> Self {
        Self { node, key: String::new() }
    }

    fn fail<T>(&self, message: impl Display) -> Result<T, Failure> {
        Err(Failure::new(format!("Option `{}` {message}", self.key)))
    }

    /// The one text that is given.
    fn text(&self) -> Result<&str, Failure> {
        match &self.node {
            Node::Text(text) => Ok(text),
            Node::Flag => self.fail(format_args!("needs a value: `{}=...`", self.key)),
            Node::List(_) => self.fail("is given twice"),
            Node::Table(_) => self.fail("has no parts"),
        }
    }

    fn number<T: std::str::FromStr>(
        &self,
        least: impl Display,
        most: impl Display,
    ) -> Result<T, Failure> {
        let text = self.text()?;
        match text.parse() {
            Ok(number) => Ok(number),
            Err(_) => self.fail(format_args!(
                "is a whole number from {least} to {most}, not `{}`",
                short(text)
            )),
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty;)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
                visitor.$visit(self.number(<$type>::MIN, <$type>::MAX)?)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for NodeDeserializer {
    type Error = Failure;

    /// A text, for types of one value that may be written in several ways.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node {
            Node::Table(entries) => visitor.visit_map(Table {
                key: self.key,
                entries: entries.into_iter(),
                value: None,
            }),
            _ => self.fail("has parts"),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.node == Node::Flag {
            return visitor.visit_bool(true);
        }
        match self.text()? {
            "true" | "on" | "yes" => visitor.visit_bool(true),
            "false" | "off" | "no" => visitor.visit_bool(false),
            text => self.fail(format_args!("is `on` or `off`, not `{}`", short(text))),
        }
    }

    numbers! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let values = match self.node {
            Node::List(values) => values,
            _ => vec![self.text()?.to_owned()],
        };
        visitor.visit_seq(List { key: self.key, values: values.into_iter() })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let text: StrDeserializer<'_, Failure> = self.text()?.into_deserializer();
        visitor.visit_enum(text)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match (&self.node, fields.first()) {
            (Node::Table(_), _) | (_, None) => self.deserialize_map(visitor),
            (_, Some(field)) => self.fail(format_args!("has parts: `{}.{field}=...`", self.key)),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier
        ignored_any
    }
}

struct Table {
    key: String,
    entries: std::vec::IntoIter<(String, Node)>,
    value: Option<(String, Node)>,
}

impl<'de> MapAccess<'de> for Table {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        self.value = self.entries.next();
        let Some((name, _)) = &self.value else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, Failure> = name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let Some((name, node)) = self.value.take() else {
            return Err(de::Error::custom("A value was asked for before its key"));
        };
        let key = if self.key.is_empty() { name } else { format!("{}.{name}", self.key) };
        seed.deserialize(NodeDeserializer { node, key: key.clone() })
            .map_err(|failure| failure.of(&key))
    }
}

struct List {
    key: String,
    values: std::vec::IntoIter<String>,
}

impl<'de> SeqAccess<'de> for List {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        let Some(value) = self.values.next() else {
            return Ok(None);
        };
        seed.deserialize(NodeDeserializer { node: Node::Text(value), key: self.key.clone() })
            .map(Some)
    }
}

impl Failure {
    /// This failure, with the key whose value it is about.
    fn of(self, key: &str) -> Self {
        if self.placed { self } else { Self::new(format!("Option `{key}`: {}", self.message)) }
    }
}

impl de::Error for Failure {
    fn custom<T: Display>(message: T) -> Self {
        Self { message: message.to_string(), placed: false }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(suggest::unknown(Kind::Option, field, expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(suggest::unknown(Kind::Value, variant, expected))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("Option `{field}` is given twice"))
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// As much of a wrong value as an error repeats.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}
