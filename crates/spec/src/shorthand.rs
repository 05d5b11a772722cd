//! Where a table stands, the text of its option may stand: `memory = "2G,hugepages"`, `cpus = 2`,
//! `disks = ["root.img", { path = "data.img", readonly = true }]`.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// For `deserialize_with`: one `T`.
pub(crate) fn one<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Shorthand<'de>,
{
    One(PhantomData).deserialize(deserializer)
}

/// For `deserialize_with`: an optional `T` that is there.
pub(crate) fn some<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Shorthand<'de>,
{
    one(deserializer).map(Some)
}

/// For `deserialize_with`: a list.
pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Shorthand<'de>,
{
    deserializer.deserialize_seq(List(PhantomData))
}

/// For `deserialize_with`: an optional list that is there.
pub(crate) fn some_list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Shorthand<'de>,
{
    list(deserializer).map(Some)
}

/// The schema of one `T` and its text.
pub(crate) fn one_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let table = generator.subschema_for::<T>();
    json_schema!({ "anyOf": [table, { "type": ["string", "integer"] }] })
}

/// The schema of a list of these.
pub(crate) fn list_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let item = one_schema::<T>(generator);
    json_schema!({ "type": "array", "items": item })
}

/// What has a table and a text.
pub(crate) trait Shorthand<'de>: Deserialize<'de> + FromStr<Err = crate::Error> {}

impl<'de, T: Deserialize<'de> + FromStr<Err = crate::Error>> Shorthand<'de> for T {}

struct One<T>(PhantomData<T>);

impl<'de, T: Shorthand<'de>> DeserializeSeed<'de> for One<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Shorthand<'de>> Visitor<'de> for One<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table or a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

struct List<T>(PhantomData<T>);

impl<'de, T: Shorthand<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(One(PhantomData))? {
            list.push(item);
        }
        Ok(list)
    }
}
