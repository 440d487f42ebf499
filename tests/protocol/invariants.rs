//! The invariants of the line protocol as properties: whatever the commands, however they are
//! cut, framing holds, bodies are never run, and the steps are the same.

use crate::ways::{Way, run};
use proptest::collection::vec;
use proptest::prelude::*;
use ringmq::config::Limits;

/// One command as bytes.
#[derive(Clone, Debug)]
struct Sent {
    bytes: Vec<u8>,
}

/// What every body may hold: things that would be commands outside of it.
fn nasty() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"\nPUB evil :x\n".to_vec()),
        Just(b"PULL evil\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"QDEL evil $5\n".to_vec()),
        Just(b"5\nPURGE evil\n".to_vec()),
        vec(any::<u8>(), 0..40),
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    vec(nasty(), 0..5).prop_map(|parts| parts.concat())
}

fn verb() -> impl Strategy<Value = String> {
    let known = "PUB PUB! MPUB MPUB! PULL POP ACK ACK! NACK TOUCH SUB CREDIT UNSUB QSET QGET QLS QDEL \
                 DEL PURGE PEEK MOVE SYNC STATS CANCEL HELLO PING QUIT HELP PULL! CAST BIND UNBIND REQ REP BEGIN COMMIT ABORT AUTH FOO x \
                 pub Pull ack! @ @x";
    let known: Vec<String> = known.split(' ').map(str::to_owned).collect();
    prop_oneof![
        6 => proptest::sample::select(known),
        1 => "[ -9;-~]{1,14}".prop_map(|word| word.replace(' ', "")).prop_filter("a token", |w| !w.is_empty()),
    ]
}

fn argument() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zA-Z0-9._~+-]{1,12}",
        1 => "[a-z]{1,3}(,[a-z]{1,3}){0,7}",
        1 => "[a-z]{1,3}/[a-z]{1,3}",
        1 => "[0-9]{1,20}",
        1 => "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}",
        1 => "(pri|delay|ttl|key|once|sync|lease|wait|credit|h\\.[aB]|bytes|from|state)=[a-z0-9%:]{0,5}",
        1 => "%[0-9a-fA-F]{2}[a-z]{0,3}",
        1 => "[!-9;-~][!-~]{0,8}",
        1 => "\\PC{1,4}".prop_map(|word| word.replace([' ', ':'], "")).prop_filter("a token", |w| !w.is_empty()),
    ]
}

fn line_end() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![Just(&b"\n"[..]), Just(&b"\r\n"[..])]
}

/// The part of a line in front of its body. The last token is neither a size nor broken as one.
fn head() -> impl Strategy<Value = String> {
    (
        proptest::option::weighted(0.3, "[a-zA-Z0-9_-]{1,20}"),
        verb(),
        vec(argument(), 0..4),
    )
        .prop_map(|(tag, verb, arguments)| {
            let tag = tag.map_or(String::new(), |tag| format!("@{tag} "));
            let mut head = format!("{tag}{verb}");
            for argument in arguments {
                head.push(' ');
                head.push_str(&argument);
            }
            if head.ends_with('\r') {
                head.push('.');
            }
            let last = head.rsplit(' ').next().unwrap_or("");
            if last.starts_with(['$', '*']) {
                head.push_str(" end");
            }
            head
        })
}

/// A whole command in any of the forms.
fn command() -> impl Strategy<Value = Sent> {
    let plain = (head(), line_end()).prop_map(|(head, end)| [head.as_bytes(), end].concat());
    let inline = (head(), body(), line_end()).prop_map(|(head, mut body, end)| {
        body.retain(|octet| *octet != b'\n');
        [head.as_bytes(), b" :", &body, end].concat()
    });
    let counted = (head(), body(), line_end(), line_end()).prop_map(|(head, body, end, after)| {
        [
            head.as_bytes(),
            format!(" ${}", body.len()).as_bytes(),
            end,
            &body,
            after,
        ]
        .concat()
    });
    let lines =
        (head(), vec((body(), line_end()), 0..6), line_end()).prop_map(|(head, lines, end)| {
            let mut bytes = [
                head.as_bytes(),
                format!(" *{}", lines.len()).as_bytes(),
                end,
            ]
            .concat();
            for (mut body, end) in lines {
                body.retain(|octet| *octet != b'\n');
                bytes.extend_from_slice(&body);
                bytes.extend_from_slice(end);
            }
            bytes
        });
    let batch = (vec(body(), 1..5), line_end()).prop_map(|(bodies, end)| {
        let mut data = Vec::new();
        for body in bodies {
            data.extend_from_slice(format!("{}\n", body.len()).as_bytes());
            data.extend_from_slice(&body);
            data.push(b'\n');
        }
        [
            format!("MPUB q ${}", data.len()).as_bytes(),
            end,
            &data,
            end,
        ]
        .concat()
    });
    prop_oneof![1 => plain, 1 => inline, 2 => counted, 2 => lines, 1 => batch]
        .prop_map(|bytes| Sent { bytes })
}

/// Limits that the generated bodies meet on both sides, and the usual ones.
fn some_limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        Just(Limits::default()),
        Just(Limits {
            line_bytes_max: 1000,
            body_bytes_max: 25,
            batch_bytes_max: 60,
            batch_count_max: 3,
            handles_max: 2,
            ..Limits::default()
        }),
    ]
}

/// Cuts at the given places, each taken modulo what there is.
fn cut<'a>(input: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = places
        .iter()
        .map(|place| place % (input.len() + 1))
        .collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for place in places {
        pieces.push(&input[start..place]);
        start = place;
    }
    pieces.push(&input[start..]);
    pieces
}

/// The same steps in every way and in every chunking tried.
fn same_steps(input: &[u8], places: &[usize], limits: &Limits) -> Vec<String> {
    let want = run(&[input], limits, Way::Decode);
    let pieces = cut(input, places);
    for way in [Way::Decode, Way::Space, Way::General] {
        assert_eq!(run(&pieces, limits, way), want, "{way:?}");
    }
    let bytes: Vec<_> = input.chunks(1).collect();
    assert_eq!(run(&bytes, limits, Way::Space), want);
    want
}

/// Many cases; `PROPTEST_CASES` can ask for more.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    ProptestConfig {
        cases: asked.cases.max(1500),
        failure_persistence: None,
        ..asked
    }
}

proptest! {
    #![proptest_config(config())]

    /// F1: every command gives exactly one step, whatever its verb and its body, and what stands
    /// between them stays in place.
    #[test]
    fn every_command_is_one_step(
        commands in vec(command(), 1..6),
        places in vec(any::<usize>(), 0..12),
        limits in some_limits(),
    ) {
        let mut input = Vec::new();
        for (index, sent) in commands.iter().enumerate() {
            input.extend_from_slice(format!("PING :{index}\n").as_bytes());
            input.extend_from_slice(&sent.bytes);
        }
        input.extend_from_slice(b"PING :last\n");
        let steps = same_steps(&input, &places, &limits);
        prop_assert_eq!(steps.len(), 2 * commands.len() + 1, "{:#?}\n{}", steps, input.escape_ascii());
        for (index, pair) in steps.chunks(2).enumerate() {
            let ping = if index == commands.len() { "last".to_owned() } else { index.to_string() };
            prop_assert_eq!(&pair[0], &format!("PING :{ping}"));
        }
        for step in &steps {
            prop_assert!(!step.starts_with("FATAL") && !step.contains("FATAL "), "{step}");
            let verb = step.split(' ').find(|word| !word.starts_with('@')).unwrap_or("");
            let runs_body = ["QDEL", "PULL", "PURGE"].contains(&verb) && step.contains("evil");
            prop_assert!(!runs_body, "{step}");
        }
    }

    /// Any bytes at all: no panic, no difference by chunking, memory bounded (checked by `run`).
    #[test]
    fn garbage_is_read_the_same_in_any_pieces(
        parts in vec(prop_oneof![
            vec(any::<u8>(), 0..30),
            Just(b"\n".to_vec()), Just(b"\r\n".to_vec()), Just(b" ".to_vec()), Just(b" :".to_vec()),
            Just(b"PUB q ".to_vec()), Just(b"MPUB q ".to_vec()), Just(b"@t ".to_vec()),
            "\\$[0-9]{1,2}".prop_map(String::into_bytes), "\\*[0-9]".prop_map(String::into_bytes),
            Just(b"$".to_vec()), Just(b"*".to_vec()), Just(b"%".to_vec()), Just(b"=".to_vec()),
            Just(b"1\na\n".to_vec()), command().prop_map(|sent| sent.bytes),
        ], 0..12),
        places in vec(any::<usize>(), 0..12),
        limits in some_limits(),
    ) {
        same_steps(&parts.concat(), &places, &limits);
    }

    /// A transcript with some bytes changed, taken out or doubled.
    #[test]
    fn mutated_transcripts_are_read_the_same_in_any_pieces(
        commands in vec(command(), 1..5),
        edits in vec((any::<usize>(), any::<u8>(), 0..3u8), 1..6),
        places in vec(any::<usize>(), 0..8),
        limits in some_limits(),
    ) {
        let mut input: Vec<u8> = commands.into_iter().flat_map(|sent| sent.bytes).collect();
        for (place, octet, edit) in edits {
            let place = place % (input.len() + 1);
            match edit {
                0 => input.insert(place, octet),
                1 if place < input.len() => { input.remove(place); }
                _ if place < input.len() => input[place] = octet,
                _ => {}
            }
        }
        same_steps(&input, &places, &limits);
    }

    /// Plain commands take the short cut and give what the general path gives.
    #[test]
    fn the_short_cut_changes_nothing(
        verb in "(PUB|PUB!|ACK|ACK!|PULL|pub)",
        words in vec("([a-z.]{1,5}|[0-9]{1,11}|1\\.2\\.3|:|@x|%20|\\$[0-9]|a,b|wait=1|é| )", 0..4),
        body in "( :[a-z \r]{0,30}| \\$0003\n?abc|)",
        end in "(\n|\r\n)",
        limits in some_limits(),
    ) {
        let input = format!("{verb} {}{body}{end}PING\n", words.join(" "));
        let short = run(&[input.as_bytes()], &limits, Way::Decode);
        let general = run(&[input.as_bytes()], &limits, Way::General);
        prop_assert_eq!(short, general);
    }

    /// Bodies large enough to be collected or skipped in many pieces.
    #[test]
    fn large_bodies_are_read_the_same_in_any_pieces(
        heads in vec(prop_oneof![
            Just("PUB q"), Just("@t PUB q h.a=b"), Just("MPUB q"), Just("FOO"), Just("PUB q/g"), Just("PUB a b"),
        ], 1..4),
        sizes in vec(15_000..50_000usize, 3),
        filling in nasty(),
        ends in vec(prop_oneof![Just("\n"), Just("\r\n"), Just("\r"), Just("x\n")], 3),
        places in vec(any::<usize>(), 0..20),
        limits in prop_oneof![
            Just(Limits::default()),
            Just(Limits { body_bytes_max: 30_000, batch_bytes_max: 40_000, ..Limits::default() }),
        ],
    ) {
        let mut input = Vec::new();
        for ((head, size), end) in heads.iter().zip(sizes).zip(ends) {
            let body: Vec<u8> = match filling.as_slice() {
                [] => vec![0; size],
                filling => filling.iter().copied().cycle().take(size).collect(),
            };
            let body = match *head {
                "MPUB q" => [format!("{size}\n").as_bytes(), &body, b"\n"].concat(),
                _ => body,
            };
            input.extend_from_slice(format!("{head} ${}\n", body.len()).as_bytes());
            input.extend_from_slice(&body);
            input.extend_from_slice(end.as_bytes());
        }
        input.extend_from_slice(b"PING :last\n");
        let want = run(&[&input], &limits, Way::Decode);
        let pieces = cut(&input, &places);
        for way in [Way::Decode, Way::Space, Way::General] {
            prop_assert!(run(&pieces, &limits, way) == want, "{way:?}");
        }
    }
}
