use serde_json::{Value, json};

use crate::cli::error::Exit;
use crate::cli::testing::{Answer, Server, parsed};

fn letter(id: &str, more: &Value) -> Value {
    let mut letter = json!({
        "function": "shop.pay", "id": id, "status": "open", "status_at": "2026-11-20T10:00:00Z", "category": "invalid",
        "reason": "missing field `card`\nat line 1", "attempts": 1, "first_failed_at": "2026-11-20T10:00:00Z",
        "last_failed_at": "2026-11-20T10:00:00Z", "deadline": "2500-01-01T00:00:00Z", "revision": 3, "redrives": 0,
        "idempotency_key": "/shop#7"
    });
    letter.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    letter
}

fn page(letters: &[Value], next: Option<&str>) -> Answer {
    Answer::json(&json!({"letters": letters, "next": next}))
}

fn lines(server: &Server) -> Vec<String> {
    server.asked().into_iter().map(|asked| asked.line).collect()
}

#[tokio::test]
async fn letters_are_listed_with_the_command_that_redrives_them() {
    let resolved = letter("orders/1/5", &json!({"status": "resolved"}));
    let server = Server::answering([page(&[letter("orders/0/12", &json!({})), resolved], None)]).await;
    let out = server.run(&["dead-letters", "list", "--status", "all"]).await.done();
    let row = out.lines().nth(1).unwrap();
    assert!(row.contains("ago  shop.pay  orders/0/12  invalid") && row.contains("open, due in "), "{out}");
    assert!(row.ends_with(r"missing field `card`\nat line 1"), "{out}");
    assert!(out.ends_with("once more:\n  millrace dead-letters redrive shop.pay orders/0/12\n"), "{out}");
}

#[tokio::test]
async fn a_list_goes_over_pages_up_to_its_limit() {
    let some = |ids: &[&str]| ids.iter().map(|id| letter(id, &json!({}))).collect::<Vec<_>>();
    let pages = [page(&some(&["a/0/1"]), Some("x")), page(&[], Some("y")), page(&some(&["a/0/2", "a/0/3"]), Some("z"))];
    let server = Server::answering(pages).await;
    let args =
        ["dead-letters", "list", "--limit", "3", "--category", "invalid", "--topic", "a", "--function", "shop.pay"];
    let ran = server.run(&args).await;
    assert!(ran.err.contains("There are more than 3"), "{}", ran.err);
    assert!(ran.done().contains("a/0/3"));
    let query = "GET /v1/dead-letters?function=shop.pay&status=open&category=invalid&topic=a";
    let expected = [format!("{query}&limit=3"), format!("{query}&after=x&limit=2"), format!("{query}&after=y&limit=2")];
    assert_eq!(lines(&server), expected);
}

#[tokio::test]
async fn a_letter_is_shown_with_everything_that_is_known() {
    let record = json!({
        "partition": 0, "offset": 12, "timestamp": "2026-11-20T09:59:00Z", "key": "ada",
        "event": {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.placed", "data": {"order": 7}}
    });
    let shown = letter("orders/0/12", &json!({"record": record, "note": "looked at"}));
    let server = Server::answering([Answer::json(&shown)]).await;
    let out = server.run(&["dead-letters", "show", "shop.pay", "orders/0/12"]).await.done();
    assert_eq!(lines(&server), ["GET /v1/dead-letters/shop.pay/orders/0/12"]);
    for expected in [
        "orders/0/12 of shop.pay\n",
        "  status           open, since 2026-11-20T10:00:00Z (",
        "  note             looked at\n",
        "  reason           missing field `card`\n                   at line 1\n",
        "  idempotency key  /shop#7\n",
        "  key              ada\n",
        "  data             {\n                     \"order\": 7\n                   }\n",
        "  millrace dead-letters redrive shop.pay orders/0/12\n",
    ] {
        assert!(out.contains(expected), "{expected}\n{out}");
    }
}

/// What a command sends, given these words.
async fn check(words: &[&str], path: &str, expected: Value) {
    let answer = json!({"dry_run": false, "letters": [{"function": "shop.pay", "id": "orders/0/12"}]});
    let server = Server::answering([Answer::json(&answer)]).await;
    let mut line = vec!["dead-letters"];
    line.extend_from_slice(words);
    let out = server.run(&line).await.done();
    assert_eq!(out, "shop.pay  orders/0/12\n");
    let asked = server.asked().pop().unwrap();
    assert_eq!(asked.line, format!("POST /v1/dead-letters/{path}"));
    let mut body: Value = serde_json::from_str(&asked.body).unwrap();
    let given = body.as_object_mut().unwrap();
    given.retain(|_, value| *value != json!(false));
    assert_eq!(body, expected);
}

#[tokio::test]
async fn letters_are_chosen_by_id_or_by_filter() {
    let one = json!({"function": "shop.pay", "ids": ["orders/0/12", "orders/1/3"]});
    check(&["redrive", "shop.pay", "orders/0/12", "orders/1/3"], "redrive", one).await;
    check(&["redrive", "--all"], "redrive", json!({"all": true})).await;
    check(
        &["resolve", "shop.pay", "--reason", "card", "--note", "n", "--force"],
        "resolve",
        json!({"function": "shop.pay", "reason_contains": "card", "note": "n", "force": true}),
    )
    .await;
    check(
        &["discard", "--category", "invalid", "--topic", "orders", "--note", "n", "--dry-run"],
        "discard",
        json!({"category": "invalid", "topic": "orders", "note": "n", "dry_run": true}),
    )
    .await;
}

#[tokio::test]
async fn more_than_one_request_can_treat_is_treated_in_several() {
    let answer = |id: &str, next: Option<&str>| {
        Answer::json(&json!({"dry_run": false, "letters": [{"function": "shop.pay", "id": id}], "next": next}))
    };
    let server = Server::answering([answer("a/0/1", Some("x")), answer("a/0/2", None)]).await;
    let ran = server.run(&["dead-letters", "redrive", "shop.pay"]).await;
    assert_eq!(ran.out, "shop.pay  a/0/1\nshop.pay  a/0/2\n");
    assert!(ran.err.starts_with("2 dead letters redriven.\nOrder is not restored"), "{}", ran.err);
    assert!(server.asked()[1].body.contains(r#""after":"x""#));

    let server = Server::answering([answer("a/0/1", Some("x")), Answer::problem(503, "the log is full")]).await;
    let err = server.run(&["dead-letters", "redrive", "shop.pay"]).await.refused(Exit::Failed);
    assert_eq!(err, "error: the log is full (1 letter redriven before that)\n");
}

#[tokio::test]
async fn a_short_name_is_looked_up() {
    let function = crate::cli::status::tests::function("shop.pay", &json!({}));
    let status = Answer::json(&json!({"state": "ready", "functions": [function]}));
    let answer = Answer::json(&json!({"dry_run": true, "letters": []}));
    let server = Server::answering([status, answer]).await;
    let ran = server.run(&["dead-letters", "redrive", "pay", "--dry-run"]).await;
    assert!(ran.err.starts_with("No open dead letter fits"), "{}", ran.err);
    assert!(server.asked()[1].body.contains(r#""function":"shop.pay""#));
}

#[tokio::test]
async fn it_must_be_said_which_letters() {
    let server = Server::answering([]).await;
    let err = server.run(&["dead-letters", "redrive"]).await.refused(Exit::Usage);
    assert!(err.starts_with("error: it is not said which letters to redrive\n  fix: give a function"), "{err}");
    for (words, expected) in [
        (&["redrive", "shop.pay", "orders-12"][..], "`orders-12` is not the id of a dead letter"),
        (&["redrive", "shop.pay", "--all"], "cannot be used with"),
        (&["redrive", "shop.pay", "orders/0/1", "--category", "invalid"], "cannot be used with"),
        (&["redrive", "--category", "bad"], "is one of transient, invalid, rejected, unknown"),
        (&["discard", "shop.pay", "orders/0/1"], "--note"),
        (&["show", "shop.pay"], "<ID>"),
    ] {
        let line: Vec<&str> = std::iter::once("dead-letters").chain(words.iter().copied()).collect();
        let error = parsed(&line).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
