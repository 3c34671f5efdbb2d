//! A chat template comes with a model from anywhere: whatever it does ends in under a second and 64 MiB, with an error.

use std::process::Command;
use std::time::{Duration, Instant};

use distill::corpus::{ChatTemplate, Message, SpecialTokens};

/// The most memory the process ever held, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

const HOSTILE: [(&str, &str); 50] = [
    (
        "nested loops",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
    ),
    ("silent loops", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"),
    ("doubling", "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"),
    (
        "doubling ~",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    ),
    ("repeat", "{{ 'a' * 10**9 }}"),
    ("repeat of repeats", "{{ ('a' * 9999) * 9999 * 99 }}"),
    ("repeat in a loop", "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}"),
    (
        "doubling by a product",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s * 2 %}{% endfor %}{{ ns.s }}",
    ),
    ("power", "{{ 9 ** 9 ** 9 ** 9 }}"),
    ("recursive loop", "{% for m in [messages] recursive %}{{ loop([m]) }}{% endfor %}"),
    ("branching recursive loop", "{% for m in [messages, messages] recursive %}{{ loop([m, m]) }}{% endfor %}"),
    ("mutual macros", "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}"),
    (
        "macro that calls its caller",
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{% call f() %}x{% endcall %}",
    ),
    ("macro as its own filter", "{% macro f(x) %}{{ f(f(x ~ x)) }}{% endmacro %}{{ f('x') }}"),
    (
        "four nested loops over a text",
        "{% set s = 'x' * 999 %}{% for a in s %}{% for b in s %}{% for c in s %}{% for d in s %}{% set x = a ~ b ~ c ~ d %}{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
    ),
    ("range of ranges", "{% for a in range(99999) %}{% for b in range(a) %}{% endfor %}{% endfor %}"),
    (
        "sort",
        "{{ range(99999) | list | sort(reverse=true) | unique | map('string') | join | length }}{{ raise_exception('x') }}",
    ),
    (
        "groups of texts",
        "{% for i in range(9999) %}{{ ('x' * 99999) | upper | replace('X', 'yy') | length }}{% endfor %}",
    ),
    ("slices", "{% set s = 'x' * 3000000 %}{% for i in range(99999) %}{% set x = s[1:] %}{% endfor %}"),
    ("repeat 99 MB", "{% set x = 'a' * 99000000 %}"),
    ("repeat list", "{{ ([1] * 10**8) | list | length }}"),
    ("count list", "{{ ([1] * 10**8).count(2) }}"),
    ("huge range", "{{ range(10**9) | list }}"),
    ("overflowing range", "{{ range(9223372036854775807, -9223372036854775807, -1) }}"),
    ("recursive macro", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"),
    (
        "branching macro",
        "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    ),
    ("join", "{{ ''.join([('x' * 100000)] * 100000) }}"),
    ("join filter", "{{ ([('x' * 100000)] * 100000) | join }}"),
    ("replace", "{{ ('x' * 100000).replace('x', 'y' * 100000) }}"),
    ("split", "{{ ('x ' * 3000000).split(' ') | length }}"),
    ("split chars", "{{ ('x' * 6000000) | list | length }}"),
    ("scans", "{% set s = 'x' * 3000000 %}{% for i in range(99999) %}{% if s.find('y') > 0 %}{% endif %}{% endfor %}"),
    ("contains", "{% set s = 'x' * 3000000 %}{% for i in range(99999) %}{% if 'y' in s %}{% endif %}{% endfor %}"),
    ("format width", "{{ '{:999999999}'.format(1) }}"),
    ("format filter width", "{{ '%999999999d' | format(1) }}"),
    ("format texts", "{{ ('{0}' * 30000).format('x' * 1000000) }}"),
    (
        "format of laughs",
        "{% set ns = namespace(x=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ '{}'.format(ns.x) }}",
    ),
    (
        "find laughs",
        "{% set ns = namespace(x=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ raise_exception(ns.x in 'ha') }}",
    ),
    (
        "hash laughs",
        "{% set ns = namespace(x=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ {ns.x: 1} | length }}{{ raise_exception('end') }}",
    ),
    ("indent", "{{ ('x\n' * 100000) | indent(1000000) }}"),
    ("center", "{{ 'x' | center(1000000000) }}"),
    ("percent width", "{{ '%999999999d' % 1 }}"),
    ("nesting", "{% set ns = namespace(x=[]) %}{% for a in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}"),
    (
        "print nesting",
        "{% set ns = namespace(x=[]) %}{% for a in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ),
    (
        "dump nesting",
        "{% set ns = namespace(x=[]) %}{% for a in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}{% for a in range(99999) %}{% endfor %}",
    ),
    (
        "print laughs",
        "{% set ns = namespace(x=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    ),
    (
        "dump laughs",
        "{% set ns = namespace(x=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ),
    (
        "string of laughs",
        "{% set ns = namespace(x=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ (ns.x ~ '') | length }}",
    ),
    (
        "join laughs",
        "{% set ns = namespace(x=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ''.join(ns.x) }}",
    ),
    (
        "compare laughs",
        "{% set ns = namespace(x=['ha'], y=['ha']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    ),
];

/// Renders one template in this process and says what it took.
fn suffer(source: &str) {
    let messages = [Message::new("user", "hi"), Message::new("assistant", "hello")];
    // What a harmless rendering takes is not the template's.
    let harmless = ChatTemplate::new("{{ messages[0].content }}", SpecialTokens::default()).unwrap();
    harmless.render(&messages, true).unwrap();
    let (before, start) = (peak(), Instant::now());
    let result = ChatTemplate::new(source, SpecialTokens::default()).and_then(|t| t.render(&messages, true));
    let took = start.elapsed();
    println!("TOOK {} {} {}", took.as_millis(), (peak() - before) >> 20, result.is_ok());
}

#[test]
fn hostile_templates_end_in_bounded_time_and_memory() {
    // Each in a process of its own: the peak is then the template's, and a thread that is left behind ends with it.
    if let Ok(name) = std::env::var("HOSTILE_TEMPLATE") {
        return suffer(HOSTILE.iter().find(|(n, _)| *n == name).unwrap().1);
    }
    for (name, _) in HOSTILE {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hostile_templates_end_in_bounded_time_and_memory", "--nocapture"])
            .env("HOSTILE_TEMPLATE", name)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success(), "{name}: {output}");
        let took = output.lines().find_map(|l| l.split_once("TOOK ")).unwrap_or_else(|| panic!("{name}: {output}")).1;
        println!("{name}: {took}");
        let took: Vec<&str> = took.split(' ').collect();
        assert!(took[0].parse::<u64>().unwrap() < 1000, "{name}: {} ms", took[0]);
        assert!(took[1].parse::<u64>().unwrap() < 64, "{name}: {} MiB", took[1]);
        // 9000 brackets are a silly text, but a short one.
        assert!(took[2] == "false" || name == "print nesting", "{name} was rendered");
    }
    // Compiling is bounded too.
    for (name, source) in [
        ("deep parentheses", format!("{{{{ {}1{} }}}}", "(".repeat(200_000), ")".repeat(200_000))),
        ("deep blocks", "{% if true %}".repeat(50_000)),
        ("deep lists", format!("{{{{ {}{} }}}}", "[".repeat(200_000), "]".repeat(200_000))),
        ("6,000 nested ifs", "{% if true %}".repeat(6000) + &"{% endif %}".repeat(6000)),
        ("6,000 nested loops", "{% for m in messages %}".repeat(6000) + &"{% endfor %}".repeat(6000)),
        ("6,000 nested elses", "{% if false %}{% else %}".repeat(6000) + &"{% endif %}".repeat(6000)),
        ("deep subscripts", format!("{{{{ {}0{} }}}}", "messages[".repeat(50_000), "]".repeat(50_000))),
        ("deep calls", format!("{{{{ {}0{} }}}}", "range(".repeat(50_000), ")".repeat(50_000))),
        ("long", "x".repeat((1 << 20) + 1)),
    ] {
        let start = Instant::now();
        assert!(ChatTemplate::new(&source, SpecialTokens::default()).is_err(), "{name}");
        assert!(start.elapsed() < Duration::from_secs(1), "{name}: {:?}", start.elapsed());
    }
    // Silly, but neither deep nor long: what matters is that they end.
    for (name, sign) in [("long signs", "-"), ("long nots", "not ")] {
        let start = Instant::now();
        let source = format!("{{{{ {}1 }}}}", sign.repeat(200_000));
        drop(ChatTemplate::new(&source, SpecialTokens::default()).and_then(|t| t.render(&[], false)));
        assert!(start.elapsed() < Duration::from_secs(1), "{name}: {:?}", start.elapsed());
    }
}

#[test]
fn a_long_conversation_is_no_hostile_one() {
    let template = "{% for m in messages %}{% set content = m.content.split('</think>')[-1].strip() %}{% if loop.first %}{{ bos_token }}\
                    {% endif %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}";
    let long: Vec<Message> =
        (0..2000).map(|n| Message::new(if n % 2 == 0 { "user" } else { "assistant" }, &"word ".repeat(300))).collect();
    let text = ChatTemplate::new(template, SpecialTokens::default()).unwrap().render(&long, false).unwrap();
    assert!(text.len() > 2_900_000);
}
