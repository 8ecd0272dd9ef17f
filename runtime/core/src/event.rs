//! A CloudEvents 1.0 event.

use bytes::Bytes;
use bytestring::ByteString;

use crate::time::Timestamp;

/// An event with the attributes of CloudEvents 1.0 (<https://github.com/cloudevents/spec>). Cheap to clone, because texts
/// and data share the memory of the record they were decoded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique within its source. Not empty.
    pub id: ByteString,
    /// A URI reference. Not empty.
    pub source: ByteString,
    /// The `type` attribute. Not empty.
    pub ty: ByteString,
    /// What the event is about, within its source.
    pub subject: Option<ByteString>,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// The media type of the data.
    pub datacontenttype: Option<ByteString>,
    /// The schema of the data.
    pub dataschema: Option<ByteString>,
    /// Extension attributes in canonical string form, sorted by name. Names are lower-case letters and digits.
    pub extensions: Vec<(ByteString, ByteString)>,
    /// The payload; absent is not the same as empty.
    pub data: Option<Bytes>,
}

impl Event {
    /// The value of an extension attribute.
    #[must_use]
    pub fn extension(&self, name: &str) -> Option<&ByteString> {
        let at = self.extensions.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        self.extensions.get(at).map(|(_, value)| value)
    }
}
