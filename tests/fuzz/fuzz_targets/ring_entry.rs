//! See `parsers`.
#![no_main]
use salvol_fuzz::parsers::ring::ENTRY as TARGET;

libfuzzer_sys::fuzz_target!(init: salvol_fuzz::plant(&TARGET), |data: &[u8]| { (TARGET.run)(data); });
