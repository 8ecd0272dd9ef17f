//! JSON as values of the expression language. Texts without escapes are not copied.

use std::fmt;
use std::sync::Arc;

use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator, Sizer, Zeroer};
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelNull, CelString, CelUInt, MAP_TYPE, Type};
use cel::common::value::{CowVal, Val};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The value of a JSON text.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Val + '_>, serde_json::Error> {
    serde_json::from_slice::<Json<'_>>(json).map(|json| json.0)
}

struct Json<'v>(Box<dyn Val + 'v>);

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Json(Box::new(CelNull)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Json(Box::new(CelBool::from(value))))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Json(Box::new(CelInt::from(value))))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Json(Box::new(CelInt::from(value))),
            Err(_) => Json(Box::new(CelUInt::from(value))),
        })
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Json(Box::new(CelDouble::from(value))))
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Json(Box::new(CelString::from(value))))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Json(Box::new(CelString::from(value.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Json(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(Json(Box::new(CelList::from(items))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<Member<'de>> = Vec::new();
        while let Some(name) = map.next_key::<Name<'de>>()? {
            members.push((name.0, map.next_value::<Json<'de>>()?.0));
        }
        // Of members with the same name the last one counts, as in most readers of JSON.
        members.reverse();
        members.sort_by(|a, b| a.0.inner().cmp(b.0.inner()));
        members.dedup_by(|a, b| a.0.inner() == b.0.inner());
        Ok(Json(Box::new(Object(members.into()))))
    }
}

struct Name<'v>(CelString<'v>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Name(CelString::from(name)))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Name(CelString::from(name.to_owned())))
    }
}

type Member<'v> = (CelString<'v>, Box<dyn Val + 'v>);

/// An object of JSON: a map whose members come in the order of their names. The language's own map comes in a random
/// order, and an expression must give the same answer every time.
#[derive(Clone, Debug)]
struct Object<'v>(Arc<[Member<'v>]>);

impl<'v> Object<'v> {
    fn find(&self, name: &dyn Val) -> Option<&(dyn Val + 'v)> {
        let name = name.downcast_ref::<CelString<'_>>()?.inner();
        let at = self.0.binary_search_by(|(n, _)| n.inner().cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }
}

impl<'a> Val for Object<'a> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn as_zeroer(&self) -> Option<&dyn Zeroer> {
        Some(self)
    }

    /// Maps that are written in an expression can only be looked up, so that all maps that are compared are of this type.
    fn equals(&self, other: &dyn Val) -> bool {
        let (Some(indexer), Some(sizer)) = (other.as_indexer(), other.as_sizer()) else { return false };
        let is_equal = |(name, value): &Member<'_>| indexer.get(name).is_ok_and(|v| value.equals(&*v));
        other.get_type() == &MAP_TYPE && sizer.size() == self.size() && self.0.iter().all(is_equal)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }
}

impl Container for Object<'_> {
    fn contains(&self, name: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.find(name).is_some())
    }
}

impl<'a> Indexer for Object<'a> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        match (self.find(index), index.downcast_ref::<CelString<'_>>()) {
            (Some(value), _) => Ok(CowVal::Borrowed(value)),
            (None, Some(name)) => Err(ExecutionError::no_such_key(name.inner())),
            (None, None) => Err(ExecutionError::UnexpectedType {
                got: index.get_type().name().to_owned(),
                want: "name of a member".to_owned(),
            }),
        }
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

impl<'a> Iterable for Object<'a> {
    fn iter<'b, 'v>(&'b self) -> Box<dyn Iterator<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(Names(self.0.iter()))
    }
}

struct Names<'b, 'a>(std::slice::Iter<'b, Member<'a>>);

impl<'b, 'v, 'a: 'v> Iterator<'b, 'v> for Names<'b, 'a> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.0.next().map(|(name, _)| name as &(dyn Val + 'v))
    }
}

impl Sizer for Object<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(i64::try_from(self.0.len()).unwrap_or(i64::MAX))
    }
}

impl Zeroer for Object<'_> {
    fn is_zero_value(&self) -> bool {
        self.0.is_empty()
    }
}
