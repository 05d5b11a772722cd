//! WS-Management messages (DSP0226) for Windows' remote shell (MS-WSMV, 3.1.4): SOAP 1.2, written as text, read into a small
//! tree.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use quick_xml::escape::escape;

use super::ntlm::random;
use crate::xml::{Element, parse, shortened};

/// A shell's classes and actions begin so.
const SHELL: &str = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell";
const TRANSFER: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer";
/// The server has nothing to say yet: ask again (ERROR_WSMAN_OPERATION_TIMEDOUT).
pub(super) const NOTHING_YET: u32 = 2_150_858_793;
/// Largest envelope that we take at once; a server of Windows Server 2012 and later sends up to 500 KiB.
const ENVELOPE: usize = 512_000;

/// What a message asks for.
pub(super) enum Ask<'a> {
    /// A shell with streams.
    Create,
    /// To run a program in it.
    Command { program: &'a str, arguments: &'a str },
    /// To give bytes to a program.
    Send { command: &'a str, bytes: &'a [u8], is_last: bool },
    /// What a program said.
    Receive { command: &'a str },
    /// To end a program.
    Terminate { command: &'a str },
    /// To end a shell.
    Delete,
}

/// What a program said, and whether it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Its exit code, after its end.
    pub done: Option<i32>,
}

/// What a server says when it does not do what it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    /// The number in its WSManFault, or 0.
    pub code: u32,
    /// What it says, for people.
    pub message: String,
}

impl Ask<'_> {
    /// What is asked, in a word for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create => "opening a shell",
            Self::Command { .. } => "starting PowerShell",
            Self::Send { .. } => "giving PowerShell its script",
            Self::Receive { .. } => "reading what PowerShell says",
            Self::Terminate { .. } => "ending PowerShell",
            Self::Delete => "closing the shell",
        }
    }

    /// The message to the service at `to` about the shell `shell`; the server takes at most `seconds` for its answer.
    pub fn envelope(&self, to: &str, shell: Option<&str>, seconds: u64) -> String {
        let (action, options, body) = match self {
            Self::Create => (
                format!("{TRANSFER}/Create"),
                options(&[("WINRS_NOPROFILE", "FALSE"), ("WINRS_CODEPAGE", "65001")]),
                "<rsp:Shell><rsp:InputStreams>stdin</rsp:InputStreams>\
                 <rsp:OutputStreams>stdout stderr</rsp:OutputStreams></rsp:Shell>"
                    .to_owned(),
            ),
            Self::Command { program, arguments } => (
                format!("{SHELL}/Command"),
                // Standard input is a pipe; cmd.exe finds the program.
                options(&[("WINRS_CONSOLEMODE_STDIN", "FALSE"), ("WINRS_SKIP_CMD_SHELL", "FALSE")]),
                format!(
                    "<rsp:CommandLine><rsp:Command>{}</rsp:Command><rsp:Arguments>{}</rsp:Arguments>\
                     </rsp:CommandLine>",
                    escape(*program),
                    escape(*arguments)
                ),
            ),
            Self::Send { command, bytes, is_last } => (
                format!("{SHELL}/Send"),
                String::new(),
                format!(
                    "<rsp:Send><rsp:Stream Name=\"stdin\" CommandId=\"{}\"{}>{}</rsp:Stream></rsp:Send>",
                    escape(*command),
                    if *is_last { " End=\"true\"" } else { "" },
                    BASE64.encode(bytes)
                ),
            ),
            Self::Receive { command } => (
                format!("{SHELL}/Receive"),
                options(&[("WSMAN_CMDSHELL_OPTION_KEEPALIVE", "TRUE")]),
                format!(
                    "<rsp:Receive><rsp:DesiredStream CommandId=\"{}\">stdout stderr</rsp:DesiredStream>\
                     </rsp:Receive>",
                    escape(*command)
                ),
            ),
            Self::Terminate { command } => (
                format!("{SHELL}/Signal"),
                String::new(),
                format!(
                    "<rsp:Signal CommandId=\"{}\"><rsp:Code>{SHELL}/signal/terminate</rsp:Code></rsp:Signal>",
                    escape(*command)
                ),
            ),
            Self::Delete => (format!("{TRANSFER}/Delete"), String::new(), String::new()),
        };
        let selector = shell.map_or_else(String::new, |shell| {
            format!(
                "<w:SelectorSet><w:Selector Name=\"ShellId\">{}</w:Selector></w:SelectorSet>",
                escape(shell)
            )
        });
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
             <s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
             xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
             xmlns:w=\"http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd\" \
             xmlns:p=\"http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd\" xmlns:rsp=\"{SHELL}\"><s:Header>\
             <a:To>{}</a:To><a:ReplyTo><a:Address s:mustUnderstand=\"true\">\
             http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>\
             <w:MaxEnvelopeSize s:mustUnderstand=\"true\">{ENVELOPE}</w:MaxEnvelopeSize>\
             <a:MessageID>uuid:{}</a:MessageID>\
             <w:Locale s:mustUnderstand=\"false\" xml:lang=\"en-US\"/>\
             <p:DataLocale s:mustUnderstand=\"false\" xml:lang=\"en-US\"/>\
             <w:OperationTimeout>PT{seconds}S</w:OperationTimeout>\
             <w:ResourceURI s:mustUnderstand=\"true\">{SHELL}/cmd</w:ResourceURI>\
             <a:Action s:mustUnderstand=\"true\">{action}</a:Action>{selector}{options}</s:Header>\
             <s:Body>{body}</s:Body></s:Envelope>",
            escape(to),
            uuid(),
        )
    }
}

/// Reads an answer: what is in its body (nothing, for some), or the fault there.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(super) fn reply(bytes: &[u8]) -> Result<Result<Option<Element>, Fault>, String> {
    let envelope = parse(bytes)?;
    if envelope.name != "Envelope" {
        return Err(format!("it is no SOAP envelope but <{}>", shortened(&envelope.name)));
    }
    let body = envelope.into_child("Body").ok_or("the envelope has no body")?;
    let Some(content) = body.children.into_iter().next() else { return Ok(Ok(None)) };
    match content.name.as_str() {
        "Fault" => Ok(Err(fault(&content))),
        _ => Ok(Ok(Some(content))),
    }
}

/// The identity of a shell that was made: in a selector, or in the shell itself.
pub(super) fn shell_id(created: &Element) -> Option<String> {
    let own = created.value("ShellId");
    let selectors = created.at(&["ReferenceParameters", "SelectorSet"]);
    let selector = || {
        let found = selectors?.children("Selector");
        let mut found = found.filter(|one| one.attribute("Name") == Some("ShellId"));
        found.next().map(|one| one.text.trim())
    };
    own.or_else(selector).filter(|id| !id.is_empty()).map(str::to_owned)
}

/// What the answer to [`Ask::Receive`] holds.
pub(super) fn received(response: &Element) -> Result<Received, String> {
    let mut received = Received::default();
    for stream in response.children("Stream") {
        let text: String = stream.text.split_ascii_whitespace().collect();
        let bytes = BASE64.decode(text).map_err(|_| "a stream is not base64")?;
        match stream.attribute("Name") {
            Some("stdout") => received.stdout.extend(bytes),
            Some("stderr") => received.stderr.extend(bytes),
            _ => {}
        }
    }
    let state = response.child("CommandState");
    if let Some(state) = state
        && state.attribute("State").is_some_and(|state| state.ends_with("/CommandState/Done"))
    {
        received.done = Some(state.number("ExitCode").unwrap_or(0));
    }
    Ok(received)
}

fn fault(fault: &Element) -> Fault {
    // WS-Management's own words are often a number only; the WSManFault in it has a sentence.
    let details = fault.child("Detail").or_else(|| fault.child("detail"));
    let own = details.and_then(|details| details.child("WSManFault"));
    let code = own.and_then(|own| own.attribute("Code")).and_then(|code| code.parse().ok());
    let mut text = String::new();
    if let Some(message) = own.and_then(|own| own.child("Message")) {
        gather(message, &mut text);
    }
    if text.trim().is_empty() {
        let reason = fault.at(&["Reason", "Text"]).or_else(|| fault.child("faultstring"));
        text = reason.map(|reason| reason.text.clone()).unwrap_or_default();
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut message = shortened(text.trim_end_matches('.'));
    if message.is_empty() {
        message = "the server does not say why".into();
    }
    Fault { code: code.unwrap_or(0), message }
}

/// All text below an element.
fn gather(element: &Element, text: &mut String) {
    text.push_str(&element.text);
    for child in &element.children {
        text.push(' ');
        gather(child, text);
    }
}

fn options(options: &[(&str, &str)]) -> String {
    let options =
        options.iter().map(|(name, value)| format!("<w:Option Name=\"{name}\">{value}</w:Option>"));
    format!("<w:OptionSet>{}</w:OptionSet>", options.collect::<String>())
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> String {
    let mut bytes: [u8; 16] = random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = crate::pull::hexadecimal(&bytes).to_uppercase();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(body: &str) -> String {
        format!(
            "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Body>{body}</s:Body></s:Envelope>"
        )
    }

    #[test]
    fn what_is_sent_is_escaped() {
        let ask = Ask::Command { program: "a<b", arguments: "\"c\" & d" };
        let text = ask.envelope("http://h/wsman", Some("id&"), 20);
        let envelope = parse(text.as_bytes()).unwrap();
        let line = envelope.at(&["Body", "CommandLine"]).unwrap();
        assert_eq!(
            (line.value("Command"), line.value("Arguments")),
            (Some("a<b"), Some("\"c\" & d"))
        );
        let selector = envelope.at(&["Header", "SelectorSet", "Selector"]).unwrap();
        assert_eq!((selector.attribute("Name"), &selector.text[..]), (Some("ShellId"), "id&"));
    }

    #[test]
    fn shells_are_named_in_either_way() {
        for body in [
            "<rsp:Shell><rsp:ShellId>A-1</rsp:ShellId></rsp:Shell>",
            "<x:ResourceCreated><a:ReferenceParameters><w:SelectorSet><w:Selector Name=\"ShellId\">A-1</w:Selector>\
             </w:SelectorSet></a:ReferenceParameters></x:ResourceCreated>",
        ] {
            let created = reply(envelope(body).as_bytes()).unwrap().unwrap().unwrap();
            assert_eq!(shell_id(&created).as_deref(), Some("A-1"));
        }
    }

    #[test]
    fn streams_and_their_end_are_read() {
        let body = "<rsp:ReceiveResponse><rsp:Stream Name=\"stdout\" CommandId=\"C\">YWI=</rsp:Stream>\
            <rsp:Stream Name=\"stderr\" CommandId=\"C\">eA==</rsp:Stream>\
            <rsp:Stream Name=\"stdout\" CommandId=\"C\" End=\"true\"></rsp:Stream>\
            <rsp:CommandState CommandId=\"C\" State=\"http://schemas.microsoft.com/wbem/wsman/1/windows/shell/\
            CommandState/Done\"><rsp:ExitCode>3</rsp:ExitCode></rsp:CommandState></rsp:ReceiveResponse>";
        let response = reply(envelope(body).as_bytes()).unwrap().unwrap().unwrap();
        let expected = Received { stdout: b"ab".to_vec(), stderr: b"x".to_vec(), done: Some(3) };
        assert_eq!(received(&response).unwrap(), expected);
        let broken = body.replace("YWI=", "*");
        let response = reply(envelope(&broken).as_bytes()).unwrap().unwrap().unwrap();
        assert!(received(&response).unwrap_err().contains("base64"));
    }

    #[test]
    fn a_fault_is_one_sentence_with_its_number() {
        let body = "<s:Fault><s:Code><s:Value>s:Receiver</s:Value></s:Code><s:Reason><s:Text xml:lang=\"en-US\">\
            The WS-Management service cannot complete the operation within the time specified in OperationTimeout.  \
            </s:Text></s:Reason><s:Detail><f:WSManFault xmlns:f=\"http://schemas.microsoft.com/wbem/wsman/1/wsmanfault\" \
            Code=\"2150858793\" Machine=\"h\"><f:Message>It took\n too long. </f:Message></f:WSManFault></s:Detail></s:Fault>";
        let fault = reply(envelope(body).as_bytes()).unwrap().unwrap_err();
        assert_eq!(fault, Fault { code: NOTHING_YET, message: "It took too long".into() });
        let plain = "<s:Fault><s:Reason><s:Text>Access is denied. </s:Text></s:Reason></s:Fault>";
        let fault = reply(envelope(plain).as_bytes()).unwrap().unwrap_err();
        assert_eq!(fault, Fault { code: 0, message: "Access is denied".into() });
    }
}
