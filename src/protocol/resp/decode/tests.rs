//! Commands cut at every point, malformed ones, and mutated ones.

use proptest::prelude::*;

use super::*;

fn decoded(input: &[u8], cuts: &[usize], takes_lines: bool) -> Vec<String> {
    let limits = Limits::default();
    let mut decoder = Decoder {
        takes_lines,
        ..Decoder::default()
    };
    let mut found = Vec::new();
    let mut kept: Vec<u8> = Vec::new();
    let mut from = 0;
    for to in cuts.iter().copied().chain([input.len()]) {
        kept.extend_from_slice(&input[from..to]);
        from = to;
        loop {
            let (used, step) = decoder.decode(&kept, &limits);
            match step {
                Step::Incomplete => break,
                Step::Command => {
                    let words = decoder.words(&kept);
                    let words: Vec<_> = words
                        .iter()
                        .map(|word| String::from_utf8_lossy(word).into_owned())
                        .collect();
                    assert_eq!(words.len(), decoder.count());
                    found.push(words.join("|"));
                }
                Step::Broken(Broken(text)) => {
                    found.push(format!("broken: {text}"));
                    return found;
                }
            }
            kept.drain(..used);
        }
    }
    found
}

fn check(input: &[u8], want: &[&str]) {
    for lines in [false, true] {
        assert_eq!(decoded(input, &[], lines), want);
    }
    for cut in 0..input.len() {
        assert_eq!(decoded(input, &[cut], false), want, "cut at {cut}");
    }
    let each: Vec<usize> = (1..input.len()).collect();
    assert_eq!(decoded(input, &each, false), want);
}

#[test]
fn commands_one_after_another() {
    check(
        b"*1\r\n$4\r\nPING\r\n*3\r\n$5\r\nRPUSH\r\n$1\r\nk\r\n$5\r\na\r\nbc\r\n*0\r\n*-1\r\n*1\r\n$0\r\n\r\n",
        &["PING", "RPUSH|k|a\r\nbc", "", "", ""],
    );
}

#[test]
fn lines_are_taken_only_where_nothing_else_can_be_meant() {
    let input = b"PING\r\nset  'a b' \"c\" d\n\r\n*1\r\n$4\r\nQUIT\r\n";
    let want = ["PING", "set|a b|c|d", "", "QUIT"];
    let each: Vec<usize> = (1..input.len()).collect();
    assert_eq!(decoded(input, &[], true), want);
    assert_eq!(decoded(input, &each, true), want);
    assert_eq!(decoded(input, &[], false), ["broken: expected '*'"]);
    assert_eq!(
        decoded(b"set 'a\n", &[], true),
        ["broken: unbalanced quotes in request"]
    );
}

#[test]
fn a_stream_out_of_step_is_broken() {
    for input in [
        "*x\r\n",
        "*1e3\r\n",
        "*+1\r\n",
        "*\r\n",
        "*1\n",
        "*99999999\r\n",
        "*99999999999999999999999999999999999\r\n",
        "*1\r\n$-1\r\n",
        "*1\r\n$x\r\n",
        "*1\r\n$4\r\nPINGxx",
        "*1\r\n$1048577\r\n",
        "*1\r\n:4\r\n",
        "*1\r\n$1\r\nab\r\n",
        "*1\r\n$9223372036854775807\r\n",
    ] {
        for cuts in [vec![], (1..input.len()).collect()] {
            let found = decoded(input.as_bytes(), &cuts, false);
            assert!(
                found.last().is_some_and(|last| last.starts_with("broken")),
                "{input}: {found:?}"
            );
        }
    }
}

#[test]
fn nothing_is_kept_for_what_is_only_announced() {
    let limits = Limits::default();
    let mut decoder = Decoder::default();
    let input = b"*1000000\r\n$1000000\r\n";
    assert_eq!(decoder.decode(input, &limits), (0, Step::Incomplete));
    assert!(decoder.in_frame() && decoder.memory() < 1000);
}

#[test]
fn a_command_is_bounded_as_a_whole() {
    let bulk = [b"$1048576\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
    let input = [b"*40\r\n".as_slice(), &bulk.repeat(40)].concat();
    let found = decoded(&input, &[], false);
    assert_eq!(
        found,
        ["broken: the command is larger than --max-batch-bytes"]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, in whatever pieces, gives the same commands.
    #[test]
    fn mutated_commands_do_not_depend_on_their_pieces(
        changes in prop::collection::vec((0usize..200, any::<u8>()), 0..6),
        cuts in prop::collection::vec(0usize..200, 0..6),
        lines in any::<bool>(),
    ) {
        let mut input = b"*3\r\n$5\r\nRPUSH\r\n$4\r\njobs\r\n$11\r\nhello world\r\n*1\r\n$4\r\nPING\r\n\
            *2\r\n$4\r\nLPOP\r\n$4\r\njobs\r\n*4\r\n$5\r\nBLPOP\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\n0\r\n".to_vec();
        for (at, octet) in changes {
            let at = at % input.len();
            input[at] = octet;
        }
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % input.len()).collect();
        cuts.sort_unstable();
        prop_assert_eq!(decoded(&input, &cuts, lines), decoded(&input, &[], lines));
    }
}
