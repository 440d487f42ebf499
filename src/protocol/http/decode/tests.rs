//! Requests cut at every point, malformed ones, and mutated ones.

use proptest::prelude::*;

use super::*;

/// What a decoder made of an input: requests as text, `continue`, and a refusal's status.
fn decoded(input: &[u8], cuts: &[usize], limits: &Limits, in_place: bool) -> Vec<String> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    let mut kept: Vec<u8> = Vec::new();
    let mut from = 0;
    for to in cuts.iter().copied().chain([input.len()]) {
        let mut piece = &input[from..to];
        from = to;
        while in_place && kept.is_empty() && !piece.is_empty() {
            let Some(space) = decoder.body_space() else {
                break;
            };
            let count = space.len().min(piece.len());
            space[..count].copy_from_slice(&piece[..count]);
            decoder.body_filled(count);
            piece = &piece[count..];
        }
        kept.extend_from_slice(piece);
        loop {
            let (used, step) = decoder.decode(&kept, limits);
            let told = match step {
                Step::Incomplete => None,
                Step::Continue => Some("continue".to_owned()),
                Step::Request(head, body) => Some(format!(
                    "{:?} {} {} {:?} {}",
                    head.method,
                    String::from_utf8_lossy(&head.target),
                    String::from_utf8_lossy(&head.host),
                    head.keep_alive,
                    String::from_utf8_lossy(body.as_slice())
                )),
                Step::Refused(refusal) => Some(format!("refused {}", refusal.status)),
            };
            kept.drain(..used);
            let Some(told) = told else { break };
            if told != "continue" {
                decoder.done();
            }
            found.push(told);
        }
        assert!(kept.len() <= HEAD_BYTES_MAX + IN_PLACE_BYTES_MAX + CHUNK_LINE_BYTES_MAX);
    }
    found
}

/// Every way of cutting the input in two, and octet by octet, gives the same.
fn check(input: &[u8], want: &[&str]) {
    let limits = Limits::default();
    let whole = decoded(input, &[], &limits, false);
    assert_eq!(whole, want, "{}", String::from_utf8_lossy(input));
    let plain = |found: Vec<String>| -> Vec<String> {
        // Whoever sends the body without waiting is not asked for it.
        found
            .into_iter()
            .filter(|told| told != "continue")
            .collect()
    };
    let want = plain(whole);
    for cut in 0..input.len() {
        let found = plain(decoded(input, &[cut], &limits, true));
        assert_eq!(found, want, "cut at {cut}");
    }
    let each: Vec<usize> = (1..input.len()).collect();
    assert_eq!(plain(decoded(input, &each, &limits, true)), want);
}

#[test]
fn requests_one_after_another() {
    check(
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nPOST /queue HTTP/1.1\r\nHost: b:1\r\nContent-Length: 5\r\n\r\nhelloHEAD / HTTP/1.0\r\n\r\n",
        &[
            "Get /healthz a true ",
            "Post /queue b:1 true hello",
            "Head /  false ",
        ],
    );
    check(
        b"\r\n\nGET / HTTP/1.0\nConnection: x, Keep-Alive\n\n\r\nPUT /q?x=1 HTTP/1.1\nHost: h\nConnection: close\n\n",
        &["Get /  true ", "Other /q?x=1 h false "],
    );
}

#[test]
fn bodies_in_chunks() {
    let head = "POST /q HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n";
    let good = format!(
        "{head}5\r\nhello\r\nA;ext=\"x\"\r\n, world..\r\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"
    );
    check(
        good.as_bytes(),
        &["Post /q h true hello, world..\r", "Get / h true "],
    );
    for bad in [
        "x\r\n",
        "\r\n",
        "-1\r\n",
        "5\nhello",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n",
        "0\r\n\n",
        "FFFFFFFFFFFFFFFFFF\r\n",
        "5 x\r\nhello\r\n0\n",
    ] {
        let input = format!("{head}{bad}{bad}");
        let found = decoded(input.as_bytes(), &[], &Limits::default(), false);
        assert_eq!(found, ["refused 400"], "{bad:?}");
    }
    let large = format!("{head}FFFFFF\r\n");
    let found = decoded(large.as_bytes(), &[], &Limits::default(), false);
    assert_eq!(found, ["refused 413"]);
}

#[test]
fn large_bodies_are_collected() {
    let body = vec![b'x'; 100_000];
    let mut input = b"POST /q HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n".to_vec();
    input.extend_from_slice(&body);
    input.extend_from_slice(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let want = [
        format!("Post /q h true {}", String::from_utf8_lossy(&body)),
        "Get / h true ".to_owned(),
    ];
    for cuts in [vec![], vec![60], vec![70, 71], vec![50_000, 100_050]] {
        for in_place in [false, true] {
            assert_eq!(decoded(&input, &cuts, &Limits::default(), in_place), want);
        }
    }
}

#[test]
fn a_client_that_waits_is_asked_for_its_body_once() {
    let head = "POST /q HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n";
    let limits = Limits::default();
    for (length, body) in [
        ("Content-Length: 2\r\n\r\n", "hi".to_owned()),
        ("Content-Length: 20000\r\n\r\n", "x".repeat(20_000)),
        (
            "Transfer-Encoding: chunked\r\n\r\n",
            "2\r\nhi\r\n0\r\n\r\n".to_owned(),
        ),
    ] {
        let input = format!("{head}{length}{body}");
        let cut = head.len() + length.len();
        let found = decoded(input.as_bytes(), &[cut, cut + 1], &limits, true);
        assert_eq!(found.len(), 2, "{length}: {found:?}");
        assert_eq!(found[0], "continue");
    }
    let none = format!("{head}Content-Length: 2\r\n\r\nhi");
    assert_eq!(decoded(none.as_bytes(), &[], &limits, false).len(), 1);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let cases = [
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: identity", 501),
        ("Content-Length: +5", 400),
        ("Content-Length: 5, 5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length: ", 400),
        ("Content-Length: 99999999999999999999999", 400),
        ("Content-Length: 2000000", 413),
        ("Content-Length : 5", 400),
        ("Host: other", 400),
        (" folded: x", 400),
        ("Expect: a miracle", 417),
    ];
    for (fields, status) in cases {
        let input =
            format!("POST /q HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n");
        let found = decoded(input.as_bytes(), &[], &Limits::default(), false);
        assert_eq!(found, [format!("refused {status}")], "{fields}");
    }
    let lines = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        ("GET /\r\n\r\n", 400),
        (
            "POST /q HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
    ];
    for (input, status) in lines {
        let found = decoded(input.as_bytes(), &[], &Limits::default(), false);
        assert_eq!(found, [format!("refused {status}")], "{input}");
    }
}

#[test]
fn heads_are_bounded() {
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "a: b\r\n".repeat(70));
    let endless = format!("GET / HTTP/1.1\r\nHost: h\r\nx: {}", "y".repeat(20_000));
    for input in [many, endless] {
        let found = decoded(input.as_bytes(), &[100], &Limits::default(), false);
        assert_eq!(found, ["refused 431"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, in whatever pieces, is taken the same way and kept within bounds.
    #[test]
    fn mutated_requests_do_not_depend_on_their_pieces(
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
        cuts in prop::collection::vec(0usize..400, 0..6),
    ) {
        let mut input = b"POST /queue/a?pri=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\nhello world\
            POST /q HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
            GET /queues?x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_vec();
        for (at, octet) in changes {
            let at = at % input.len();
            input[at] = octet;
        }
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % input.len()).collect();
        cuts.sort_unstable();
        let limits = Limits::default();
        let plain = |found: Vec<String>| -> Vec<String> {
            found.into_iter().filter(|told| told != "continue").collect()
        };
        let whole = plain(decoded(&input, &[], &limits, false));
        prop_assert_eq!(plain(decoded(&input, &cuts, &limits, true)), whole);
    }
}
