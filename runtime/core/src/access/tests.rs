use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1000);

fn shown(seed: u8) -> Shown {
    Shown::of_random([seed; 6], [seed; 32])
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn token(seed: u8, roles: &[Role]) -> Token {
    Token {
        name: format!("token {seed}"),
        secret: shown(seed).secret(),
        roles: roles.iter().copied().collect(),
        functions: Vec::new(),
        topics: Vec::new(),
        rate: None,
        created_ms: 5,
        created_by: String::new(),
        expires_ms: None,
    }
}

fn tokens(all: &[(u8, Token)]) -> Tokens {
    let entries: Vec<_> = all.iter().map(|(seed, token)| (shown(*seed).id.entry(), token.encode())).collect();
    Tokens::read(entries.iter().map(|(name, content)| (name.as_str(), &content[..])))
}

#[test]
fn roles_have_these_permissions() {
    use Permission as P;
    for (role, expected) in [
        (Role::View, &[P::View][..]),
        (Role::Publish, &[P::Publish]),
        (Role::Deploy, &[P::View, P::Deploy, P::RollBack]),
        (Role::Operate, &[P::View, P::RollBack, P::Operate]),
        (Role::Admin, &P::ALL),
    ] {
        let caller = Caller { roles: BTreeSet::from([role]), ..Caller::unrestricted("") };
        let has: Vec<P> = P::ALL.into_iter().filter(|permission| caller.may(*permission).is_ok()).collect();
        assert_eq!(has, expected, "{role}");
        assert_eq!(role.as_str().parse(), Ok(role));
    }
    assert!("root".parse::<Role>().unwrap_err().contains("view, publish, deploy, operate, admin"));
}

#[test]
fn who_shows_what_is_who() {
    let expiring = Token { expires_ms: Some(1001), ..token(2, &[Role::View]) };
    let expired = Token { expires_ms: Some(1000), ..token(3, &[Role::Admin]) };
    let tokens = tokens(&[(1, token(1, &[Role::Admin])), (2, expiring), (3, expired)]);
    let text = |seed| shown(seed).text();
    let mixed = format!("mr_{}_{}", shown(1).id, &text(2)[16..]);
    for (text, expected) in [
        (text(1), Some("token 1")),
        (text(2), Some("token 2")),
        (text(3), None),
        (text(4), None),
        (mixed, None),
        (text(1).to_uppercase(), None),
        (format!("{} ", text(1)), None),
        (text(1).replace("mr_", ""), None),
        (format!("{}0", text(1)), None),
        (format!("mr_{}_", shown(1).id), None),
        (format!("mr_{}", shown(1).id), None),
        (String::new(), None),
    ] {
        assert_eq!(tokens.caller(&text, NOW).as_ref().map(Caller::name), expected, "{text}");
    }
}

#[test]
fn secrets_of_tokens_are_taken_out_of_texts() {
    let (one, two) = (shown(1).text(), shown(2).text());
    for (text, expected) in [
        (String::new(), ""),
        ("mr_ and mrs_".to_owned(), "mr_ and mrs_"),
        (one.clone(), "mr_010101010101_***"),
        (format!("a{one}/{two}é"), "amr_010101010101_***/mr_020202020202_***é"),
        (format!("mr_{one}"), "mr_mr_010101010101_***"),
        (format!("{}Z9", &one[..30]), "mr_010101010101_***"),
        ("mr_010101010101_".to_owned(), "mr_010101010101_***"),
        ("mr_010101010101_***, twice".to_owned(), "mr_010101010101_***, twice"),
        ("mr_010101010101".to_owned(), "mr_010101010101"),
        ("mr_01010101010é_abc".to_owned(), "mr_01010101010é_abc"),
        ("mr_".to_owned(), "mr_"),
    ] {
        assert_eq!(without_secrets(&text), expected, "{text}");
    }
}

#[test]
fn a_secret_shows_in_no_debug_output() {
    let all = format!("{:?} {:?} {:?}", shown(1), token(1, &[Role::View]), tokens(&[(1, token(1, &[Role::View]))]));
    assert!(!all.contains(&shown(1).text()[16..]), "{all}");
    let kept = serde_json::to_string(&shown(1).secret()).unwrap();
    assert!(!all.contains(kept.trim_matches('"')), "{all}");
}

#[test]
fn patterns_restrict_what_is_reached() {
    let restricted = Token { functions: patterns(&["shop.*"]), topics: patterns(&["orders*", "pay"]), ..token(1, &[]) };
    let caller = Caller::of(&shown(1).id, &restricted);
    for (function, expected) in [("shop.pay", true), ("shops.pay", false)] {
        assert_eq!(caller.reaches_function(function).is_ok(), expected, "{function}");
        assert!(Caller::unrestricted("").reaches_function(function).is_ok());
    }
    for (topic, expected) in [("orders", true), ("orders-2", true), ("pay", true), ("payments", false)] {
        assert_eq!(caller.reaches_topic("millrace", topic).is_ok(), expected, "{topic}");
    }
    let denied = caller.reaches_topic("millrace", "payments").unwrap_err();
    assert_eq!(denied.to_string(), "the token is for topics `orders*`, `pay` alone, and `payments` is none of them");
    // The topics of the runtime are for nobody with a pattern, whichever it is.
    let of_functions = Caller::of(&shown(1).id, &Token { functions: patterns(&["*"]), ..token(1, &[]) });
    let of_topics = Caller::of(&shown(1).id, &Token { topics: patterns(&["*"]), ..token(1, &[]) });
    for (caller, expected) in [(&of_functions, false), (&of_topics, false), (&Caller::unrestricted(""), true)] {
        assert_eq!(caller.reaches_topic("millrace", "millrace.registry").is_ok(), expected);
        assert!(caller.reaches_topic("millrace", "orders").is_ok());
        assert_eq!(caller.reaches_all("this").is_ok(), expected);
    }
}

#[test]
fn a_caller_is_written_down_with_the_id_of_its_token() {
    assert_eq!(Caller::of(&shown(7).id, &token(1, &[])).label(), "token 1 (070707070707)");
    assert_eq!(Caller::unrestricted(ADMINISTRATOR).label(), ADMINISTRATOR);
    assert_eq!(Caller::unrestricted("").label(), "");
}

#[test]
fn a_refusal_names_the_roles() {
    let caller = Caller::of(&shown(1).id, &token(1, &[]));
    for (permission, expected) in [
        (Permission::Administer, "this needs the role `admin`, which the token does not have"),
        (Permission::Operate, "this needs one of the roles `operate`, `admin`, and the token has none of them"),
    ] {
        assert_eq!(caller.may(permission).unwrap_err().to_string(), expected);
    }
}

#[test]
fn nobody_is_locked_out() {
    let (admin, view) = (|seed| token(seed, &[Role::Admin]), |seed| token(seed, &[Role::View]));
    let brief = |seed| Token { expires_ms: Some(2000), ..admin(seed) };
    let none = Tokens::default();
    for (made, elsewhere, expected) in [
        (admin(1), false, Ok(())),
        (view(1), false, Err(Lockout::First)),
        (brief(1), false, Err(Lockout::First)),
        (view(1), true, Ok(())),
    ] {
        assert_eq!(none.may_add(&made, elsewhere, NOW), expected, "{made:?}");
        assert_eq!(tokens(&[(1, admin(1))]).may_add(&made, elsewhere, NOW), Ok(()));
    }
    for (all, elsewhere, open, expected) in [
        (&[(1, admin(1))][..], false, true, Ok(())),
        (&[(1, admin(1))], false, false, Err(Lockout::Last)),
        (&[(1, admin(1))], true, false, Ok(())),
        (&[(1, admin(1)), (2, view(2))], false, true, Err(Lockout::Last)),
        (&[(1, admin(1)), (2, brief(2))], false, true, Err(Lockout::Last)),
        (&[(1, admin(1)), (2, view(2))], true, true, Ok(())),
        (&[(1, admin(1)), (2, admin(2))], false, true, Ok(())),
        (&[(1, view(1)), (2, admin(2))], false, true, Ok(())),
        (&[(1, brief(1)), (2, view(2))], false, true, Ok(())),
    ] {
        assert_eq!(tokens(all).may_remove(&shown(1).id, elsewhere, open), expected, "{all:?} {elsewhere} {open}");
    }
}

#[test]
fn an_administrator_is_one_while_its_token_is_there_and_holds() {
    let brief = Token { expires_ms: Some(NOW.as_millis() + 1), ..token(2, &[Role::Admin]) };
    let all = tokens(&[(1, token(1, &[Role::Admin])), (2, brief), (3, token(3, &[Role::View]))]);
    for (seed, now, expected) in [(1, NOW, true), (2, NOW, true), (3, NOW, false), (4, NOW, false)] {
        assert_eq!(all.administers(&shown(seed).id, now), expected, "{seed}");
    }
    assert!(!all.administers(&shown(2).id, Timestamp::from_millis(NOW.as_millis() + 1)));
}

#[test]
fn requests_need_a_token_while_there_is_one_or_there_were_some_that_nobody_revoked() {
    let (none, one) = (Tokens::default(), tokens(&[(1, token(1, &[Role::Admin]))]));
    for (all, expected) in [
        (none.clone(), false),
        (none.after_a_loss(), true),
        (one.clone(), true),
        (one.clone().after_a_loss(), true),
        (Tokens::read([(shown(1).id.entry().as_str(), &b"{"[..])]), true),
    ] {
        assert_eq!(all.are_needed(), expected, "{all:?}");
    }
    // Revoking the last one would open nothing then.
    assert_eq!(one.after_a_loss().may_remove(&shown(1).id, false, true), Err(Lockout::Last));
}

#[test]
fn there_is_a_bound_for_those_that_hold_and_for_all() {
    let all = |hold: usize, expired: usize| {
        let brief = Token { expires_ms: Some(NOW.as_millis()), ..token(1, &[Role::Admin]) };
        let kept: Vec<_> = (0..hold + expired)
            .map(|n| {
                let id: TokenId = format!("{n:012x}").parse().unwrap();
                let kept = if n < hold { token(1, &[Role::Admin]) } else { brief.clone() };
                (id.entry(), kept.encode())
            })
            .collect();
        Tokens::read(kept.iter().map(|(name, content)| (name.as_str(), &content[..])))
    };
    for (hold, expired, expected) in [
        (limits::TOKENS_MAX - 1, 2, Ok(())),
        (limits::TOKENS_MAX, 0, Err(Lockout::TooMany)),
        (1, limits::TOKENS_KEPT_MAX - 2, Ok(())),
        (1, limits::TOKENS_KEPT_MAX - 1, Err(Lockout::TooMany)),
    ] {
        assert_eq!(all(hold, expired).may_add(&token(1, &[Role::Admin]), true, NOW), expected, "{hold} {expired}");
    }
}

#[test]
fn what_cannot_be_read_lets_nobody_in_and_counts() {
    let id = shown(1).id;
    let newer = String::from_utf8(token(1, &[Role::Admin]).encode()).unwrap();
    for content in [
        newer.replace("\"admin\"", "\"owner\""),
        newer.replacen('{', "{\"networks\":[],", 1),
        newer.replace("\"created_ms\"", "\"made_ms\""),
        newer.replace("\"created_ms\"", r#""rate":{"requests":5,"per":"day","burst":5},"created_ms""#),
        "{".to_owned(),
        String::new(),
    ] {
        let tokens = Tokens::read([(id.entry().as_str(), content.as_bytes()), ("other.x", b"y")]);
        assert_eq!((tokens.count(), tokens.has(&id)), (1, true), "{content}");
        assert_eq!(tokens.unreadable().collect::<Vec<_>>(), [id.to_string()]);
        assert_eq!(tokens.caller(&shown(1).text(), NOW), None);
        // It can be revoked.
        assert_eq!(tokens.may_remove(&id, false, false), Ok(()));
    }
}

#[test]
fn tokens_that_are_named_in_a_way_that_is_not_known_count_as_well() {
    let content = token(1, &[Role::Admin]).encode();
    for name in ["token.v2-070707070707", "token.07", "token.", "token.0707070707070", "token.07070707070G"] {
        let tokens = Tokens::read([(name, &content[..])]);
        assert_eq!((tokens.count(), tokens.are_needed(), tokens.iter().count()), (1, true, 0), "{name}");
        assert_eq!(tokens.unreadable().collect::<Vec<_>>(), [&name[6..]]);
        assert_eq!(tokens.may_add(&token(2, &[Role::View]), false, NOW), Ok(()), "it is not the first one");
    }
    assert!(!Tokens::read([("tokens.x", &content[..]), ("token", &content), ("", &content)]).are_needed());
}

#[test]
fn what_people_choose_is_checked() {
    let good = token(1, &[Role::Deploy]);
    for (token, expected) in [
        (token(1, &[Role::Deploy]), ""),
        (Token { name: String::new(), ..good.clone() }, "`name` is 1 to 100 bytes"),
        (Token { name: " a".to_owned(), ..good.clone() }, "`name` is"),
        (Token { name: "a\nb".to_owned(), ..good.clone() }, "`name` is"),
        (Token { name: "a".repeat(101), ..good.clone() }, "`name` is"),
        (Token { roles: BTreeSet::new(), ..good.clone() }, "`roles` is empty"),
        (Token { name: "Admin token of the configuration".to_owned(), ..good.clone() }, "`name`: `admin token of the"),
        (Token { functions: patterns(&["*"]), ..token(1, &[Role::Publish]) }, "whoever has the role `publish` alone"),
        (Token { functions: patterns(&["*"]), topics: patterns(&["*"]), ..token(1, &[Role::Publish]) }, ""),
        (Token { functions: patterns(&["*"]), ..token(1, &[Role::Publish, Role::View]) }, ""),
        (Token { rate: Some("1/h".parse().unwrap()), ..good.clone() }, ""),
        (Token { topics: patterns(&["a"; 33]), ..good }, "a token can have 32 patterns"),
        (Token { functions: patterns(&["*"]), ..token(1, &[Role::Admin, Role::View]) }, "whoever has the role `admin`"),
    ] {
        let said = token.check().err().map_or(String::new(), |e| e.to_string());
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{token:?}: {said}");
    }
}

#[test]
fn the_layout_is_pinned() {
    let token = Token {
        name: "ci".to_owned(),
        functions: patterns(&["shop.*"]),
        topics: patterns(&["orders*"]),
        created_by: "ada".to_owned(),
        expires_ms: Some(9),
        ..token(7, &[Role::View, Role::Deploy])
    };
    let expected = r#"{"name":"ci","secret":"1967c0fdaed0b8f2618d3b1f4a9f8541ed315505acc26f5a41f382da8bdd9954","roles":["view","deploy"],"functions":["shop.*"],"topics":["orders*"],"created_ms":5,"created_by":"ada","expires_ms":9}"#;
    assert_eq!(String::from_utf8(token.encode()).unwrap(), expected);
    let rated = Token { rate: Some("600/m".parse().unwrap()), ..token };
    let rated_too =
        expected.replace(r#""created_ms""#, r#""rate":{"requests":600,"per":"minute","burst":600},"created_ms""#);
    assert_eq!(String::from_utf8(rated.encode()).unwrap(), rated_too);
    assert_eq!(Token::decode(rated_too.as_bytes()), Some(rated));
    assert_eq!(shown(7).id.entry(), "token.070707070707");
    assert_eq!(shown(7).text(), "mr_070707070707_0707070707070707070707070707070707070707070707070707070707070707");
}

proptest! {
    #[test]
    fn a_token_reads_back(name in ".{1,20}", created_ms: u64, expires_ms: Option<u64>, id: [u8; 6], secret: [u8; 32]) {
        let shown = Shown::of_random(id, secret);
        let token = Token { name, secret: shown.secret(), created_ms, expires_ms, ..token(1, &Role::ALL) };
        prop_assert_eq!(Token::decode(&token.encode()), Some(token.clone()));
        let tokens = Tokens::read([(shown.id.entry().as_str(), &token.encode()[..])]);
        let caller = tokens.caller(&shown.text(), NOW);
        prop_assert_eq!(caller.is_some(), token.holds(NOW));
    }

    #[test]
    fn foreign_bytes_never_panic(name: String, content: Vec<u8>, text: String) {
        let tokens = Tokens::read([(name.as_str(), &content[..])]);
        prop_assert_eq!(tokens.caller(&text, NOW), None);
        prop_assert!(without_secrets(&text).len() <= text.len() + 3);
    }
}
