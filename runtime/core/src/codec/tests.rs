use proptest::prelude::*;

use super::*;
use crate::outcome::Category;

fn topic() -> Topic {
    Topic::new("shop.orders").unwrap()
}

fn place(topic: &Topic) -> Place<'_> {
    Place { topic, partition: 3, offset: 41 }
}

fn record(headers: &[(&str, Option<&str>)], value: Option<&str>) -> Record {
    Record {
        timestamp: Timestamp::from_millis(1_522_949_460_000),
        key: None,
        value: value.map(|v| Bytes::copy_from_slice(v.as_bytes())),
        headers: headers.iter().map(|&(name, value)| (name, value.map(str::as_bytes))).collect(),
    }
}

fn minimal() -> Event {
    Event {
        id: "1".into(),
        source: "/shop".into(),
        ty: "order.placed".into(),
        subject: None,
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions: Vec::new(),
        data: None,
    }
}

/// The headers of the smallest event, then `more`.
fn binary(more: &[(&'static str, Option<&'static str>)]) -> Record {
    let mut headers = vec![
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some("1")),
        ("ce_source", Some("/shop")),
        ("ce_type", Some("order.placed")),
    ];
    headers.extend_from_slice(more);
    record(&headers, None)
}

fn check_refused(what: &str, result: Result<Event, Failure>, reason: &str) {
    let failure = result.expect_err(what);
    assert_eq!(failure.category, Category::Invalid, "{what}");
    assert!(failure.reason.contains(reason), "{what}: `{}` does not say `{reason}`", failure.reason);
}

#[test]
fn a_record_in_binary_mode_is_decoded() {
    let topic = topic();
    assert_eq!(decode(&binary(&[]), place(&topic)), Ok(minimal()));

    let mut full = binary(&[
        ("ce_tenant", Some("acme")),
        ("traceparent", Some("not ours")),
        ("content-type", Some("application/json")),
        ("ce_subject", Some("4711")),
        ("ce_time", Some("2018-04-05T17:31:00Z")),
        ("ce_dataschema", Some("/schemas/order")),
        ("ce_absent", None),
        ("ce_region", Some("")),
    ]);
    full.value = Some(Bytes::from_static(b"{}"));
    let expected = Event {
        subject: Some("4711".into()),
        time: Some(Timestamp::from_millis(1_522_949_460_000)),
        datacontenttype: Some("application/json".into()),
        dataschema: Some("/schemas/order".into()),
        extensions: vec![("region".into(), "".into()), ("tenant".into(), "acme".into())],
        data: Some(Bytes::from_static(b"{}")),
        ..minimal()
    };
    assert_eq!(decode(&full, place(&topic)), Ok(expected));
}

#[test]
fn a_decoded_event_shares_the_memory_of_its_record() {
    let mut record = binary(&[("ce_tenant", Some("acme"))]);
    record.value = Some(Bytes::from_static(b"data"));
    let block = record.headers.as_block().as_ptr_range();
    let event = decode(&record, place(&topic())).unwrap();
    for text in [&event.id, &event.source, &event.ty, &event.extensions[0].0, &event.extensions[0].1] {
        assert!(block.contains(&text.as_bytes().as_ptr()), "{text}");
    }
    assert_eq!(event.data.unwrap().as_ptr(), record.value.unwrap().as_ptr());
}

#[test]
fn a_record_in_structured_mode_is_decoded() {
    let json = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"order.placed","data":{"a": 1}}"#;
    let headers =
        [("ce_specversion", Some("1.0")), ("Content-Type", Some("application/cloudevents+json; charset=utf-8"))];
    let expected = Event {
        datacontenttype: Some("application/json".into()),
        data: Some(Bytes::from_static(br#"{"a": 1}"#)),
        ..minimal()
    };
    assert_eq!(decode(&record(&headers, Some(json)), place(&topic())), Ok(expected));
}

#[test]
fn a_plain_record_is_wrapped() {
    let wrapped = |content_type: Option<&str>, value: Option<&'static str>| Event {
        id: "shop.orders/3/41".into(),
        source: "kafka:shop.orders".into(),
        ty: PLAIN_TYPE.into(),
        time: Some(Timestamp::from_millis(1_522_949_460_000)),
        datacontenttype: content_type.map(ByteString::from),
        data: value.map(|v| Bytes::from_static(v.as_bytes())),
        ..minimal()
    };
    for (headers, value, expected) in [
        (vec![], None, wrapped(None, None)),
        (vec![], Some(""), wrapped(None, Some(""))),
        (vec![("content-type", Some("text/plain"))], Some("hi"), wrapped(Some("text/plain"), Some("hi"))),
        (vec![("content-type", Some("text\u{7}"))], Some("hi"), wrapped(None, Some("hi"))),
        (vec![("content-type", None)], Some("hi"), wrapped(None, Some("hi"))),
        (vec![("ce_id", Some("only an id"))], Some("hi"), wrapped(None, Some("hi"))),
    ] {
        assert_eq!(decode(&record(&headers, value), place(&topic())), Ok(expected), "{headers:?}");
    }
}

#[test]
fn a_record_that_breaks_the_specification_is_refused_by_attribute() {
    for (what, record, reason) in [
        ("no id", record(&[("ce_specversion", Some("1.0"))], None), "`id` is missing"),
        ("no version", record(&[("ce_specversion", None), ("ce_id", Some("1"))], None), "`specversion` is missing"),
        ("an older version", record(&[("ce_specversion", Some("0.3"))], None), "`specversion` is `0.3`"),
        ("an empty id", record(&[("ce_specversion", Some("1.0")), ("ce_id", Some(""))], None), "`id` is empty"),
        ("a second id", binary(&[("ce_id", Some("2"))]), "`id` is given twice"),
        ("a second version", binary(&[("ce_specversion", Some("1.0"))]), "`specversion` is given twice"),
        ("a second extension", binary(&[("ce_a", Some("1")), ("ce_a", Some("1"))]), "`a` is given twice"),
        ("an empty subject", binary(&[("ce_subject", Some(""))]), "`subject` is empty"),
        (
            "two flaws, then none",
            binary(&[("ce_subject", Some("")), ("ce_time", Some("noon")), ("ce_tenant", Some("acme"))]),
            "`subject` is empty",
        ),
        ("a bad time", binary(&[("ce_time", Some("noon"))]), "`time` must follow RFC 3339"),
        ("an early time", binary(&[("ce_time", Some("1969-01-01T00:00:00Z"))]), "`time` must lie between 1970"),
        ("a capital", binary(&[("ce_Tenant", Some("acme"))]), "`Tenant` must have a name of"),
        ("an underscore", binary(&[("ce_tenant_id", Some("acme"))]), "`tenant_id` must have a name of"),
        ("no name", binary(&[("ce_", Some("acme"))]), "must have a name of"),
        ("a reserved name", binary(&[("ce_data", Some("acme"))]), "`data` is not an extension"),
        ("a control character", binary(&[("ce_tenant", Some("a\tb"))]), "`tenant` holds the character U+0009"),
        ("a non-character", binary(&[("ce_subject", Some("\u{ffff}"))]), "`subject` holds the character U+FFFF"),
        (
            "two content types",
            binary(&[("content-type", Some("a/b")), ("ce_datacontenttype", Some("a/b"))]),
            "`datacontenttype` is given twice",
        ),
        (
            "a batch",
            record(&[("content-type", Some("application/cloudevents-batch+json"))], Some("[]")),
            "one event in a record",
        ),
        ("another format", record(&[("content-type", Some("application/cloudevents+avro"))], None), "is understood"),
        ("structured, empty", record(&[("content-type", Some(STRUCTURED))], None), "has no value"),
        ("structured, not JSON", record(&[("content-type", Some(STRUCTURED))], Some("{")), "not a CloudEvent in JSON"),
    ] {
        check_refused(what, decode(&record, place(&topic())), reason);
    }
    let mut record = binary(&[]);
    record.headers = [("ce_specversion", Some(&b"1.0"[..])), ("ce_subject", Some(&b"\xff"[..]))].into_iter().collect();
    check_refused("not UTF-8", decode(&record, place(&topic())), "`subject` is not UTF-8");
}

#[test]
fn an_event_that_is_not_valid_is_refused_by_attribute() {
    assert_eq!(check(&minimal()), Ok(()));
    for (event, reason) in [
        (Event { id: "".into(), ..minimal() }, "`id` is empty"),
        (Event { source: "".into(), ..minimal() }, "`source` is empty"),
        (Event { ty: "a\nb".into(), ..minimal() }, "`type` holds the character U+000A"),
        (Event { subject: Some("".into()), ..minimal() }, "`subject` is empty"),
        (Event { extensions: vec![("Ab".into(), "".into())], ..minimal() }, "`Ab` must have a name"),
        (Event { extensions: vec![("a".into(), "\u{85}".into())], ..minimal() }, "`a` holds the character U+0085"),
        (Event { extensions: vec![("b".into(), "".into()), ("a".into(), "".into())], ..minimal() }, "sorted"),
        (Event { extensions: vec![("a".into(), "".into()), ("a".into(), "".into())], ..minimal() }, "given twice"),
    ] {
        check_refused(reason, check(&event).map(|()| minimal()), reason);
    }
}

#[test]
fn the_ordering_key_is_the_records_key_or_an_extension() {
    let with = |value: &str| Event { extensions: vec![("partitionkey".into(), value.into())], ..minimal() };
    let keyed = Record { key: Some(Bytes::from_static(b"k")), ..Record::default() };
    for (record, event, expected) in [
        (&keyed, with("p"), Some("k")),
        (&Record::default(), with("p"), Some("p")),
        (&Record::default(), with(""), None),
        (&Record::default(), minimal(), None),
    ] {
        assert_eq!(ordering_key(record, &event), expected.map(Bytes::from));
    }
}

#[test]
fn an_event_whose_data_is_an_event_survives_a_record() {
    for content_type in ["application/cloudevents+json", "application/cloudevents+avro"] {
        for data in [r#"{"specversion":"1.0"}"#, " {}", "not JSON"] {
            let event = Event {
                datacontenttype: Some(content_type.into()),
                data: Some(Bytes::from_static(data.as_bytes())),
                ..minimal()
            };
            let record = encode(&event, None, Timestamp::EPOCH);
            assert_eq!(decode(&record, place(&topic())), Ok(event));
        }
    }
}

#[test]
fn json_is_read() {
    let head = r#""specversion":"1.0","id":"1","source":"/shop","type":"order.placed""#;
    let typed = |content_type: &str, data: &'static str| Event {
        datacontenttype: Some(content_type.into()),
        data: Some(Bytes::from_static(data.as_bytes())),
        ..minimal()
    };
    let bytes = Event { data: Some(Bytes::from_static(b"\x00\xff")), ..minimal() };
    let extended = Event {
        extensions: vec![("a".into(), "true".into()), ("b".into(), "-5".into()), ("c".into(), "é".into())],
        ..minimal()
    };
    for (members, expected) in [
        ("", minimal()),
        (r#","subject":null,"x":null,"data":null,"data_base64":null"#, minimal()),
        (r#","data": {"a" : [1.50, 1e2]} "#, typed("application/json", r#"{"a" : [1.50, 1e2]}"#)),
        (r#","data":"text""#, typed("application/json", r#""text""#)),
        (r#","data":"text","datacontenttype":"text/plain""#, typed("text/plain", "text")),
        (r#","datacontenttype":"text/plain","data":"a\"\u00e9""#, typed("text/plain", "a\"é")),
        (r#","datacontenttype":"text/plain","data":[1]"#, typed("text/plain", "[1]")),
        (r#","datacontenttype":"a/b+json","data":1"#, typed("a/b+json", "1")),
        (r#","data_base64":"AP8=""#, bytes),
        (r#","c":"\u00e9","b":-5,"a":true"#, extended),
    ] {
        let json = format!("{{{head}{members}}}");
        assert_eq!(json::parse_event(json.as_bytes()), Ok(expected), "{json}");
    }
}

#[test]
fn json_that_is_no_event_is_refused_by_attribute() {
    let head = r#""specversion":"1.0","id":"1","source":"/shop","type":"order.placed""#;
    for (members, reason) in [
        (r#","id":"2""#, "`id` is given twice"),
        (r#","a":"1","a":"2""#, "`a` is given twice"),
        (r#","subject":5"#, "expected a string for `subject`"),
        (r#","time":"noon""#, "`time` must follow RFC 3339"),
        (r#","a":1.5"#, "expected a string, boolean or integer for `a`"),
        (r#","a":{}"#, "expected a string, boolean or integer for `a`"),
        (r#","a":[]"#, "expected a string, boolean or integer for `a`"),
        (r#","A":"""#, "`A` must have a name"),
        (r#","data":1,"data":2"#, "`data` is given twice"),
        (r#","data":1,"data_base64":"AA==""#, "exclude one another"),
        (r#","data_base64":"AA""#, "`data_base64` is not base 64"),
        (r#","data_base64":7"#, "expected a string for `data_base64`"),
        (r#","datacontenttype":"text/plain","data":"\ud800""#, "stands for no character"),
        (r#","subject":"\u0000""#, "`subject` holds the character U+0000"),
    ] {
        check_refused(members, json::parse_event(format!("{{{head}{members}}}").as_bytes()), reason);
    }
    for (json, reason) in [
        (&b"[]"[..], "expected an event, which is an object"),
        (b"", "EOF"),
        (b"{} {}", "`specversion` is missing"),
        (br#"{"specversion":"1.0"}"#, "`id` is missing"),
        (br#"{"specversion":1.0}"#, "expected a string for `specversion`"),
        (b"\xff", "not UTF-8"),
    ] {
        check_refused(reason, json::parse_event(json), reason);
    }
}

#[test]
fn a_batch_names_the_event_that_is_none() {
    let good = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"order.placed"}"#;
    assert_eq!(json::parse_batch(b" [ ] "), Ok(vec![]));
    assert_eq!(json::parse_batch(format!("[{good},{good}]").as_bytes()), Ok(vec![minimal(), minimal()]));
    for (batch, index) in [
        (good.to_owned(), 0),
        ("[7]".to_owned(), 0),
        (format!("[{good},{{}}]"), 1),
        (format!("[{good},{good},"), 2),
        (format!("[{good}] x"), 1),
    ] {
        let error = json::parse_batch(batch.as_bytes()).unwrap_err();
        assert_eq!((error.index, error.failure.category), (index, Category::Invalid), "{batch}: {error}");
    }
    assert_eq!(json::parse_batch(b"\xff").unwrap_err().index, 0);
}

#[test]
fn json_is_written_with_the_bytes_it_was_read_with() {
    let typed = |content_type: Option<&str>, data: &'static str| Event {
        datacontenttype: content_type.map(ByteString::from),
        data: Some(Bytes::from_static(data.as_bytes())),
        ..minimal()
    };
    let head = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"order.placed""#;
    for (event, tail) in [
        (minimal(), "}"),
        (typed(None, "{\"a\" : 1.0}"), r#","data":{"a" : 1.0}}"#),
        (typed(None, "text"), r#","data_base64":"dGV4dA=="}"#),
        (typed(Some("application/json"), "null"), r#","datacontenttype":"application/json","data_base64":"bnVsbA=="}"#),
        (typed(Some("application/json"), "[1] "), r#","datacontenttype":"application/json","data_base64":"WzFdIA=="}"#),
        (typed(Some("text/plain"), "text"), r#","datacontenttype":"text/plain","data":"text"}"#),
        (Event { time: Some(Timestamp::EPOCH), ..minimal() }, r#","time":"1970-01-01T00:00:00Z"}"#),
        (Event { extensions: vec![("a".into(), "1".into())], ..minimal() }, r#","a":"1"}"#),
    ] {
        let written = String::from_utf8(json::write_event(&event)).unwrap();
        assert_eq!(written, format!("{head}{tail}"));
        assert_eq!(json::to_json(&event), serde_json::from_str::<serde_json::Value>(&written).unwrap());
    }
}

#[test]
fn json_too_deep_for_a_value_is_shown_in_base_64() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let event = Event { data: Some(deep.into()), ..minimal() };
    assert!(json::to_json(&event)["data_base64"].is_string());
    assert_eq!(json::parse_event(&json::write_event(&event)).unwrap().data, event.data);
}

#[test]
fn http_headers_in_binary_mode_are_read() {
    let head: [(&str, &[u8]); 4] =
        [("ce-specversion", b"1.0"), ("ce-id", b"1"), ("ce-source", b"/shop"), ("ce-type", b"order.placed")];
    let read = |more: &[(&'static str, &'static [u8])], body: &'static [u8]| {
        http::read_binary(head.into_iter().chain(more.iter().copied()), Bytes::from_static(body))
    };
    let subject = |text: &str| Event { subject: Some(text.into()), ..minimal() };
    for (value, text) in [
        (&b"Euro%20%E2%82%AC%20%F0%9F%98%80"[..], "Euro € 😀"),
        ("Euro €".as_bytes(), "Euro €"),
        (br#""quoted \"text\" %C3%A9""#, r#"quoted "text" é"#),
        (b"100%", "100%"),
        (b"%4", "%4"),
        (b"%zz%2541", "%zz%41"),
    ] {
        let value: &'static [u8] = value.to_vec().leak();
        assert_eq!(read(&[("ce-subject", value)], b""), Ok(subject(text)), "{text}");
    }
    let full = Event {
        datacontenttype: Some("text/plain".into()),
        extensions: vec![("tenant".into(), "acme".into())],
        data: Some(Bytes::new()),
        ..minimal()
    };
    let more: &[(&str, &[u8])] = &[("host", b"x"), ("Content-Type", b"text/plain"), ("CE-Tenant", b"acme")];
    assert_eq!(read(more, b""), Ok(full));
    assert_eq!(read(&[], b"x"), Ok(Event { data: Some(Bytes::from_static(b"x")), ..minimal() }));
    check_refused("not UTF-8", read(&[("ce-subject", b"%FF")], b""), "`subject` is not UTF-8");
    check_refused("raw, not UTF-8", read(&[("ce-subject", b"\xff")], b""), "`subject` is not UTF-8");
    check_refused("twice", read(&[("ce-id", b"2")], b""), "`id` is given twice");
    check_refused("a bad name", read(&[("ce-a-b", b"2")], b""), "`a-b` must have a name");
    check_refused("nothing", http::read_binary([], Bytes::new()), "`specversion` is missing");
}

prop_compose! {
    fn text()(text in "[ -~]{1,12}|[a-zé€😀]{1,6}") -> ByteString {
        text.into()
    }
}

prop_compose! {
    fn event()(
        (id, source, ty) in (text(), text(), text()),
        subject in prop::option::of(text()),
        time in prop::option::of(any::<u64>().prop_map(Timestamp::from_nanos)),
        datacontenttype in prop::option::of(prop_oneof![
            Just("application/json".into()),
            Just("application/x+json; charset=utf-8".into()),
            Just("text/plain".into()),
            Just("application/cloudevents+json".into()),
            text(),
        ]),
        dataschema in prop::option::of(text()),
        extensions in prop::collection::btree_map("[a-z0-9]{1,30}", "[ -~é]{0,12}", 0..5),
        data in prop::option::of(prop_oneof![
            any::<Vec<u8>>(),
            ".{0,20}".prop_map(String::into_bytes),
            Just(br#"{"a": [1, 2.50, null, "x"]}"#.to_vec()),
            Just(b"\"text\"".to_vec()),
        ]),
    ) -> Event {
        let extensions = extensions.into_iter().filter(|(name, _)| !attributes::is_reserved(name));
        Event {
            id, source, ty, subject, time, datacontenttype, dataschema,
            extensions: extensions.map(|(name, value)| (name.into(), value.into())).collect(),
            data: data.map(Bytes::from),
        }
    }
}

fn header_name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("ce_specversion".to_owned()),
        Just("ce_id".to_owned()),
        Just("ce_source".to_owned()),
        Just("ce_type".to_owned()),
        Just("ce_time".to_owned()),
        Just("content-type".to_owned()),
        "ce_[a-zA-Z_]{0,3}",
        ".{0,5}",
    ]
}

proptest! {
    #[test]
    fn an_event_survives_a_record(event in event(), key in prop::option::of(any::<Vec<u8>>()), at in any::<u64>()) {
        prop_assert_eq!(check(&event), Ok(()));
        let record = encode(&event, key.map(Bytes::from), Timestamp::from_nanos(at));
        prop_assert_eq!(Headers::from_block(record.headers.as_block().clone()), Ok(record.headers.clone()));
        let decoded = decode(&record, place(&topic())).unwrap();
        prop_assert_eq!(encode(&decoded, record.key.clone(), record.timestamp), record);
        prop_assert_eq!(decoded, event);
    }

    #[test]
    fn an_event_survives_json(event in event()) {
        let json = json::write_event(&event);
        let read = json::parse_event(&json).unwrap();
        // Data that is JSON has a content type from then on, which an absent one stands for.
        let implied = event.datacontenttype.is_none() && read.datacontenttype.as_deref() == Some("application/json");
        let expected = if implied { Event { datacontenttype: read.datacontenttype.clone(), ..event } } else { event };
        prop_assert_eq!(&read, &expected);
        prop_assert_eq!(json::to_json(&expected), serde_json::from_slice::<serde_json::Value>(&json::write_event(&read)).unwrap());
    }

    #[test]
    fn a_batch_is_its_events(events in prop::collection::vec(event(), 0..5)) {
        let each: Vec<_> = events.iter().map(json::write_event).collect();
        let read: Vec<_> = each.iter().map(|json| json::parse_event(json).unwrap()).collect();
        let batch = format!("[{}]", each.iter().map(|e| str::from_utf8(e).unwrap()).collect::<Vec<_>>().join(","));
        prop_assert_eq!(json::parse_batch(batch.as_bytes()), Ok(read));
    }

    #[test]
    fn no_record_panics(
        headers in prop::collection::vec((header_name(), prop::option::of(prop_oneof![
            any::<Vec<u8>>(),
            Just(b"1.0".to_vec()),
            Just(STRUCTURED.as_bytes().to_vec()),
        ])), 0..8),
        value in prop::option::of(any::<Vec<u8>>()),
    ) {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let record = Record { headers, value: value.map(Bytes::from), ..Record::default() };
        match decode(&record, place(&topic())) {
            Ok(event) => prop_assert_eq!(check(&event), Ok(())),
            Err(failure) => prop_assert_eq!(failure.category, Category::Invalid),
        }
    }

    #[test]
    fn no_json_panics(
        text in r#"\{("(id|type|source|specversion|time|data|data_base64|a)":("[a-z0-9.=\\u]{0,8}"|[0-9.e-]{0,5}|null|true|\{\}|\[),?){0,8}\}?"#,
        bytes in any::<Vec<u8>>(),
    ) {
        for json in [text.as_bytes(), &bytes] {
            if let Ok(event) = json::parse_event(json) {
                prop_assert_eq!(check(&event), Ok(()));
            }
            prop_assert!(json::parse_batch(json).is_ok() || json != b"[]");
        }
    }

    #[test]
    fn no_http_request_panics(headers in prop::collection::vec(("(ce-)?[a-z]{0,12}", any::<Vec<u8>>()), 0..8), body in any::<Vec<u8>>()) {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        if let Ok(event) = http::read_binary(headers, body.into()) {
            prop_assert_eq!(check(&event), Ok(()));
        }
    }
}
