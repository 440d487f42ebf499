#![no_main]

// What counts coverage is libFuzzer's, so this is a target too: it writes the seeds and ends.
libfuzzer_sys::fuzz_target!(
    init: {
        ringmq_fuzz::corpus::write_all();
        std::process::exit(0);
    },
    |_data: &[u8]| {}
);
