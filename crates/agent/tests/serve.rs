//! A client and a server on a socket pair, with real commands.

use agent::{Client, Ended, Exec, Exit, Message, ServeError, ServeOptions, Streams, Window, serve};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

type Server = JoinHandle<Result<Ended, ServeError>>;

fn start() -> (UnixStream, Server) {
    let (host, guest) = UnixStream::pair().unwrap();
    // A deadline, so that a mistake fails the test instead of hanging it.
    host.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let options = ServeOptions { tty_helper: env!("CARGO_BIN_EXE_omnivisor-agent").into() };
    (host, thread::spawn(move || serve(guest, &options)))
}

fn connect() -> (Client, Server) {
    let (host, server) = start();
    (Client::from_stream(host).unwrap(), server)
}

fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(Into::into).collect(), ..Exec::default() }
}

fn sh(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

struct Outcome {
    exit: Exit,
    stdout: String,
    stderr: String,
}

fn run(client: &mut Client, exec: &Exec, stdin: Option<Box<dyn Read + Send>>) -> Outcome {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit =
        client.run(exec, Streams { stdin, stdout: &mut stdout, stderr: &mut stderr }).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { exit, stdout: text(stdout), stderr: text(stderr) }
}

#[test]
fn output_and_exit_codes_come_back() {
    let (mut client, _server) = connect();
    assert_eq!(client.hello().kernel, rustix::system::uname().release().to_str().unwrap());
    let outcome = run(&mut client, &sh("echo out; echo err >&2; exit 7"), None);
    assert_eq!((outcome.exit, outcome.exit.code()), (Exit::Code(7), 7));
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    let killed = run(&mut client, &sh("kill -9 $$"), None);
    assert_eq!((killed.exit, killed.exit.code()), (Exit::Signal(9), 137));
    client.ping().unwrap();
}

#[test]
fn what_cannot_be_started_has_the_codes_of_a_shell() {
    let (mut client, _server) = connect();
    let missing = run(&mut client, &exec(&["omnivisor-no-such-program"]), None);
    assert_eq!(missing.exit, Exit::Code(127));
    assert!(missing.stderr.contains("omnivisor-no-such-program"), "{}", missing.stderr);
    assert_eq!(run(&mut client, &exec(&["/etc/passwd"]), None).exit, Exit::Code(126));
    let tty = Some(Window { rows: 24, cols: 80 });
    let missing = Exec { tty, ..exec(&["omnivisor-no-such-program"]) };
    assert_eq!(run(&mut client, &missing, None).exit, Exit::Code(127));
    let nowhere = Exec { cwd: Some("/omnivisor-no-such-folder".into()), ..exec(&["true"]) };
    assert_eq!(run(&mut client, &nowhere, None).exit, Exit::Code(126));
}

#[test]
fn environment_and_folder_are_as_asked() {
    let (mut client, _server) = connect();
    let exec = Exec {
        env: vec![("FRUIT".into(), "pear".into())],
        cwd: Some("/usr".into()),
        ..sh("echo $FRUIT $PWD $USER; env | grep -c CARGO")
    };
    assert_eq!(run(&mut client, &exec, None).stdout, "pear /usr root\n0\n");
}

#[test]
fn much_input_passes_through_unchanged() {
    let (mut client, _server) = connect();
    let data: String = (0..700_000).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let input = Box::new(std::io::Cursor::new(data.clone().into_bytes()));
    let outcome = run(&mut client, &exec(&["cat"]), Some(input));
    assert_eq!(outcome.exit, Exit::Code(0));
    assert!(outcome.stdout == data, "{} of {} bytes came back", outcome.stdout.len(), data.len());
}

#[test]
fn a_command_that_reads_nothing_holds_nothing_up() {
    let (mut client, _server) = connect();
    let outcome =
        run(&mut client, &sh("sleep 0.2; echo done"), Some(Box::new(std::io::repeat(b'x'))));
    assert_eq!((outcome.exit, outcome.stdout.as_str()), (Exit::Code(0), "done\n"));
    let outcome = run(
        &mut client,
        &sh("exec 0<&-; sleep 0.2; echo done"),
        Some(Box::new(std::io::repeat(b'x'))),
    );
    assert_eq!((outcome.exit, outcome.stdout.as_str()), (Exit::Code(0), "done\n"));
    assert_eq!(run(&mut client, &sh("exit 3"), None).exit, Exit::Code(3));
}

#[test]
fn a_descendant_that_keeps_the_output_open_does_not_delay_the_exit() {
    let (mut client, server) = connect();
    let outcome = run(&mut client, &sh("sleep 1000 & echo $!"), None);
    assert_eq!(outcome.exit, Exit::Code(0));
    let pid = rustix::process::Pid::from_raw(outcome.stdout.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    drop(client);
    assert_eq!(server.join().unwrap().unwrap(), Ended::Disconnected);
}

#[test]
fn all_output_arrives_even_when_the_host_reads_late() {
    let (mut host, _server) = start();
    let mut frame = Vec::new();
    Message::Exec { session: 5, exec: sh("head -c 3000000 /dev/zero") }.encode(&mut frame).unwrap();
    Message::Ping { token: 9 }.encode(&mut frame).unwrap();
    host.write_all(&frame).unwrap();
    thread::sleep(Duration::from_millis(300));
    let (mut received, mut pongs) = (0, 0);
    loop {
        match Message::read_from(&mut host).unwrap() {
            Message::Stdout { session: 5, data } => received += data.len(),
            Message::Pong { token: 9 } => pongs += 1,
            Message::Exit { session: 5, exit } => break assert_eq!(exit, Exit::Code(0)),
            Message::Hello(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((received, pongs), (3_000_000, 1));
}

#[test]
fn a_dropped_client_disconnects_though_its_input_never_ends() {
    let (mut client, server) = connect();
    let (_keyboard, stdin) = UnixStream::pair().unwrap();
    assert_eq!(run(&mut client, &exec(&["true"]), Some(Box::new(stdin))).exit, Exit::Code(0));
    drop(client);
    assert_eq!(server.join().unwrap().unwrap(), Ended::Disconnected);
}

#[test]
fn commands_run_side_by_side() {
    let (mut host, _server) = start();
    let mut frames = Vec::new();
    for session in [1, 2] {
        Message::Exec { session, exec: sh("read line; echo $line") }.encode(&mut frames).unwrap();
    }
    for session in [2, 1] {
        let data = format!("line {session}\n").into_bytes();
        Message::Stdin { session, data }.encode(&mut frames).unwrap();
    }
    host.write_all(&frames).unwrap();
    let mut ended = 0;
    while ended < 2 {
        match Message::read_from(&mut host).unwrap() {
            Message::Stdout { session, data } => {
                assert_eq!(data, format!("line {session}\n").as_bytes())
            }
            Message::Exit { .. } => ended += 1,
            _ => {}
        }
    }
}

/// Says when a text has been written to it.
struct Watch {
    text: Vec<u8>,
    needle: &'static str,
    found: std::sync::mpsc::Sender<()>,
}

impl Write for Watch {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.text.extend_from_slice(data);
        if String::from_utf8_lossy(&self.text).contains(self.needle) {
            let _ = self.found.send(());
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn signals_reach_the_command_and_its_children() {
    let (mut client, _server) = connect();
    let control = client.control();
    let (found, ready) = std::sync::mpsc::channel();
    let mut stdout = Watch { text: Vec::new(), needle: "ready", found };
    let sender = thread::spawn(move || {
        ready.recv_timeout(Duration::from_secs(60)).unwrap();
        control.signal(15).unwrap();
    });
    // The child is there before the signal, and must have ended by it before the shell tells.
    let exec =
        sh("sleep 1000 & child=$!; trap 'wait $child; echo caught; exit 9' TERM; echo ready; wait");
    let streams = Streams { stdin: None, stdout: &mut stdout, stderr: &mut Vec::new() };
    assert_eq!(client.run(&exec, streams).unwrap(), Exit::Code(9));
    assert_eq!(String::from_utf8(stdout.text).unwrap(), "ready\ncaught\n");
    sender.join().unwrap();
}

#[test]
fn a_terminal_has_the_size_that_was_asked_for_and_follows_it() {
    let (mut client, _server) = connect();
    let control = client.control();
    let (found, ready) = std::sync::mpsc::channel();
    let mut stdout = Watch { text: Vec::new(), needle: "30 100", found };
    let sender = thread::spawn(move || {
        ready.recv_timeout(Duration::from_secs(60)).unwrap();
        control.resize(Window { rows: 50, cols: 132 }).unwrap();
    });
    let script =
        "trap 'stty size; exit 4' WINCH; tty >/dev/null && stty size; while :; do sleep 0.01; done";
    let exec = Exec { tty: Some(Window { rows: 30, cols: 100 }), ..sh(script) };
    let streams = Streams { stdin: None, stdout: &mut stdout, stderr: &mut Vec::new() };
    assert_eq!(client.run(&exec, streams).unwrap(), Exit::Code(4));
    assert_eq!(String::from_utf8(stdout.text).unwrap(), "30 100\r\n50 132\r\n");
    sender.join().unwrap();
}

#[test]
fn a_terminal_takes_input_and_ctrl_c() {
    let (mut client, _server) = connect();
    let tty = Some(Window { rows: 24, cols: 80 });
    let cat = Exec { tty, ..exec(&["cat"]) };
    let outcome = run(&mut client, &cat, Some(Box::new(&b"hello\n"[..])));
    assert_eq!((outcome.exit, outcome.stdout.as_str()), (Exit::Code(0), "hello\r\nhello\r\n"));
    // Ctrl-C means something once the command has its terminal.
    let (mut keyboard, stdin) = UnixStream::pair().unwrap();
    let (found, ready) = std::sync::mpsc::channel();
    let mut stdout = Watch { text: Vec::new(), needle: "ready", found };
    let typist = thread::spawn(move || {
        ready.recv_timeout(Duration::from_secs(60)).unwrap();
        keyboard.write_all(b"\x03").unwrap();
    });
    let exec = Exec { tty, ..sh("echo ready; exec sleep 1000") };
    let streams =
        Streams { stdin: Some(Box::new(stdin)), stdout: &mut stdout, stderr: &mut Vec::new() };
    assert_eq!(client.run(&exec, streams).unwrap(), Exit::Signal(2));
    typist.join().unwrap();
}

#[test]
fn power_off_kills_what_runs_and_ends_the_server() {
    let (mut host, server) = start();
    let mut frames = Vec::new();
    Message::Exec { session: 1, exec: sh("echo $$; sleep 1000") }.encode(&mut frames).unwrap();
    host.write_all(&frames).unwrap();
    let pid = loop {
        if let Message::Stdout { data, .. } = Message::read_from(&mut host).unwrap() {
            break String::from_utf8(data).unwrap();
        }
    };
    frames.clear();
    Message::PowerOff.encode(&mut frames).unwrap();
    host.write_all(&frames).unwrap();
    assert_eq!(server.join().unwrap().unwrap(), Ended::PowerOff);
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    assert!(rustix::process::test_kill_process(pid).is_err());
}

#[test]
fn a_host_that_breaks_the_protocol_is_left() {
    for frame in [
        // Longer than allowed; unknown; what only a guest sends.
        (u32::MAX).to_le_bytes().to_vec(),
        vec![1, 0, 0, 0, 99],
        {
            let mut frame = Vec::new();
            Message::Pong { token: 1 }.encode(&mut frame).unwrap();
            frame
        },
    ] {
        let (mut host, server) = start();
        host.write_all(&frame).unwrap();
        assert!(server.join().unwrap().is_err());
    }
    // More input than there is credit for.
    let (mut host, server) = start();
    let mut frames = Vec::new();
    Message::Exec { session: 1, exec: sh("sleep 1000") }.encode(&mut frames).unwrap();
    for _ in 0..8 {
        Message::Stdin { session: 1, data: vec![0; 32 << 10] }.encode(&mut frames).unwrap();
    }
    let _ = host.write_all(&frames);
    assert!(matches!(server.join().unwrap(), Err(ServeError::Unexpected)));
}

#[test]
fn a_guest_that_talks_nonsense_is_an_error() {
    for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[2, 0, 0, 0, 13, 0], &[1, 0, 0, 0, 13], &[]] {
        let (host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(bytes).unwrap();
        guest.shutdown(Shutdown::Write).unwrap();
        assert!(Client::from_stream(host).is_err());
    }
}
