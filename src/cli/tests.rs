//! Claims about what can be typed.

use super::*;
use clap::error::ErrorKind;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(std::iter::once("distill").chain(line.split_whitespace())).map(|cli| cli.command)
}

fn train(line: &str) -> TrainArgs {
    match parse(&format!("train --config c.toml {line}")) {
        Ok(Command::Train(args)) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn resume_takes_nothing_or_auto_or_a_path() {
    assert_eq!(train("").resume, None);
    assert_eq!(train("--resume").resume, Some(Resume::Auto));
    assert_eq!(train("--resume --output o").resume, Some(Resume::Auto));
    assert_eq!(train("--resume auto").resume, Some(Resume::Auto));
    assert_eq!(train("--resume r/step-1").resume, Some(Resume::From("r/step-1".into())));
}

#[test]
fn every_flag_of_train_is_read() {
    let args = train("--set a=1 --set b=2 --output o --stop-after 3 --dry-run --device cuda:1");
    assert_eq!(args.set, ["a=1", "b=2"]);
    assert_eq!((args.output, args.stop_after, args.dry_run), (Some("o".into()), Some(3), true));
    assert_eq!(args.device.choice, DeviceChoice::Cuda(1));
    assert_eq!(train("--device cpu").device.choice, DeviceChoice::Cpu);
    assert_eq!(train("--device cuda").device.choice, DeviceChoice::Cuda(0));
    assert_eq!(train("").device.choice, DeviceChoice::Auto);
}

#[test]
fn eval_needs_a_config_or_teacher_and_data() {
    for good in ["--config c", "--teacher t --data d", "--config c --teacher t", "--config c --teacher t --data d"] {
        assert!(parse(&format!("eval --student s {good}")).is_ok(), "{good}");
    }
    for bad in ["", "--teacher t", "--data d"] {
        let error = parse(&format!("eval --student s {bad}")).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::MissingRequiredArgument, 2), "{bad}");
    }
    assert!(parse("eval --config c").is_err());
}

#[test]
fn eval_reads_its_choices() {
    let line = "eval --config c --student s --loss-on all --chat-template none --fail-above-kl 0.5 \
                --fail-below-agreement 0.9 --max-rows 1 --max-length 2";
    let Ok(Command::Eval(args)) = parse(line) else { panic!() };
    assert_eq!((args.loss_on, args.chat_template), (Some(LossOn::All), Some(ChatTemplate::None)));
    assert_eq!((args.fail_above_kl, args.fail_below_agreement), (Some(0.5), Some(0.9)));
    assert_eq!((args.max_rows, args.max_length), (Some(1), Some(2)));
}

#[test]
fn generate_is_greedy_with_the_documented_defaults() {
    let Ok(Command::Generate(args)) = parse("generate --model m --prompt -dash") else { panic!() };
    assert_eq!((args.max_tokens, args.temperature, args.top_p, args.seed, args.raw), (128, 0.0, 1.0, 42, false));
    assert_eq!((args.prompt.as_str(), args.chat_template), ("-dash", ChatTemplate::Auto));
    let Ok(Command::Generate(args)) = parse("generate --model m --prompt p --raw") else { panic!() };
    assert!(args.raw);
}

#[test]
fn export_writes_f32_unless_told_otherwise() {
    let export = |line: &str| match parse(&format!("export f.gguf --dequantize --output o {line}")) {
        Ok(Command::Export(args)) => args,
        other => panic!("{other:?}"),
    };
    assert_eq!((export("").dtype, export("").tokenizer), (Dtype::F32, None));
    assert_eq!((export("--dtype bf16").dtype, export("--tokenizer t").tokenizer), (Dtype::Bf16, Some("t".into())));
}

#[test]
fn wrong_usage_exits_2() {
    for bad in [
        "train",
        "train --config",
        "train --config c --set novalue",
        "train --config c --set =1",
        "train --config c --stop-after 0",
        "train --config c --device gpu",
        "train --config c --device cuda:-1",
        "train --config c --device cuda:",
        "train --config c --unknown",
        "eval --config c --student s --max-rows 0",
        "eval --config c --student s --max-length 1",
        "eval --config c --student s --loss-on prompt",
        "eval --config c --student s --fail-above-kl nan",
        "eval --config c --student s --fail-below-agreement 98",
        "generate --model m",
        "generate --model m --prompt p --temperature -1",
        "generate --model m --prompt p --max-tokens 0",
        "generate --model m --prompt p --top-p 0",
        "generate --model m --prompt p --top-p 1.1",
        "generate --model m --prompt p --raw --chat-template none",
        "inspect",
        "verify",
        "verify a b",
        "init --config c",
        "init --output o",
        "export f.gguf --dequantize",
        "export f.gguf --output o",
        "export --dequantize --output o",
        "export f.gguf --dequantize --output o --dtype q4_1",
        "frobnicate",
        "",
    ] {
        assert_eq!(parse(bad).map(|_| ()).unwrap_err().exit_code(), 2, "{bad:?}");
    }
}
