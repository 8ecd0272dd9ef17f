//! The payload of an event, before anyone has read it.

use serde::Deserialize;

use crate::Failure;

/// The payload of an event as bytes. Absent is not the same as empty.
///
/// ```
/// use millrace_sdk::Data;
///
/// assert_eq!(Data::from("abc").bytes(), Some(&b"abc"[..]));
/// assert_eq!(Data::ABSENT.bytes(), None);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data(Option<Vec<u8>>);

impl Data {
    /// No payload at all.
    ///
    /// ```
    /// assert_eq!(millrace_sdk::Data::default(), millrace_sdk::Data::ABSENT);
    /// ```
    pub const ABSENT: Self = Self(None);

    /// The bytes, if there are any.
    ///
    /// ```
    /// assert_eq!(millrace_sdk::Data::from(vec![]).bytes(), Some(&[][..]));
    /// ```
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }

    /// The bytes themselves, without a copy.
    ///
    /// ```
    /// assert_eq!(millrace_sdk::Data::from(vec![1, 2]).into_bytes(), Some(vec![1, 2]));
    /// ```
    #[must_use]
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        self.0
    }

    /// The payload as text.
    ///
    /// # Errors
    /// [`Failure::Invalid`] if there is no payload or it is not UTF-8.
    ///
    /// ```
    /// use millrace_sdk::{Data, Failure};
    ///
    /// assert_eq!(Data::from("abc").text(), Ok("abc"));
    /// assert!(matches!(Data::from(vec![0xff]).text(), Err(Failure::Invalid(_))));
    /// ```
    pub fn text(&self) -> Result<&str, Failure> {
        let bytes = self.bytes().ok_or_else(|| Failure::invalid("the event has no data"))?;
        std::str::from_utf8(bytes).map_err(|err| Failure::invalid(format!("the data is not UTF-8: {err}")))
    }

    /// The payload parsed as JSON; it can borrow from it. Absent data reads as `null`, so that `Option<T>` accepts it.
    ///
    /// # Errors
    /// [`Failure::Invalid`] if it is not JSON, or not of this shape.
    ///
    /// ```
    /// use millrace_sdk::Data;
    ///
    /// let data = Data::from(r#"["a", "b"]"#);
    /// assert_eq!(data.json::<Vec<&str>>(), Ok(vec!["a", "b"]));
    /// assert_eq!(Data::ABSENT.json::<Option<u8>>(), Ok(None));
    /// ```
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        match &self.0 {
            Some(bytes) => serde_json::from_slice(bytes).map_err(Failure::from),
            None => serde_json::from_slice(b"null").map_err(|_| Failure::invalid("the event has no data")),
        }
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Some(bytes))
    }
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        Self(Some(text.into()))
    }
}

impl From<Option<Vec<u8>>> for Data {
    fn from(bytes: Option<Vec<u8>>) -> Self {
        Self(bytes)
    }
}
