#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    distill_fuzz::readers::teacher_cache(data);
});
