//! The events that everything is measured with: 256 bytes of data, three extensions.

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::event::Event;

/// Data of 256 bytes that is an order.
pub(crate) fn order() -> String {
    let order = r#"{"order":"o-1234567","customer":"c-4711","items":[{"sku":"cup","quantity":4,"price_cents":1250},{"sku":"teapot","quantity":1,"price_cents":4999},{"sku":"saucer","quantity":4,"price_cents":650}],"card":"card-c-4711","zone":3,"note":"PAD"}"#;
    let missing = 256 - (order.len() - "PAD".len());
    order.replace("PAD", &".".repeat(missing))
}

/// An event that the tiny guest answers with one that has the same data, or that the JSON guest bills.
pub(crate) fn event(number: u64) -> Event {
    let extension = |name: &'static str, value: String| (ByteString::from_static(name), ByteString::from(value));
    Event {
        id: format!("order-placed-{number}").into(),
        source: "/shop/web".into(),
        ty: "E.order.placed".into(),
        subject: Some("out".into()),
        time: None,
        datacontenttype: Some("application/json".into()),
        dataschema: None,
        extensions: vec![
            extension("correlationid", format!("visit-{number}")),
            extension("partitionkey", format!("customer-{}", number % 1000)),
            extension("tenant", "north".to_owned()),
        ],
        data: Some(Bytes::from(order())),
    }
}

/// The same in CloudEvents' JSON format, one on a line, with a thousand keys.
pub(crate) fn lines() -> String {
    let line = |number: u64| {
        format!(
            r#"{{"specversion":"1.0","id":"order-placed-{number}","source":"/shop/web","type":"E.order.placed","subject":"out","datacontenttype":"application/json","correlationid":"visit-{number}","partitionkey":"customer-{number}","tenant":"north","data":{}}}"#,
            order()
        ) + "\n"
    };
    (0..1000).map(line).collect()
}
