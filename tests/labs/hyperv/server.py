"""A WinRM service: WS-Management's shell (MS-WSMV) over HTTP and HTTPS, with NTLM by pyspnego.

FOLDER/fault, if it is there, holds what goes wrong with the next messages; see `Handler.fault`.
"""

import argparse
import base64
import hashlib
import os
import queue
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

import spnego
import spnego.channel_bindings

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import powershell  # noqa: E402

SOAP = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
WSMAN = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
SHELL = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
FAULT = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault"
NAMES = {"s": SOAP, "a": ADDRESSING, "w": WSMAN, "rsp": SHELL}
KIND = "application/HTTP-SPNEGO-session-encrypted"
TIMED_OUT = 2150858793


class Fault(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Command:
    """A program that runs in a shell."""

    def __init__(self, folder, line):
        self.input, self.output = queue.Queue(), queue.Queue(maxsize=64)
        self.rest, self.ended, self.code = b"", False, None
        self.gone = False
        program, _, arguments = line.partition(" ")
        self.thread = threading.Thread(target=self.work, args=(folder, program, arguments), daemon=True)
        self.thread.start()

    def work(self, folder, program, arguments):
        if program == "powershell":
            shell = powershell.Shell(folder, self.line, lambda data: self.put("stdout", data), lambda data: self.put("stderr", data))
            try:
                self.code = shell.run(arguments)
            except Exception as error:  # Whatever it is, the client shall hear of it.
                self.put("stderr", repr(error).encode())
                self.code = 1
        elif program == "echo":
            self.put("stdout", arguments.encode() + b"\r\n")
            self.code = 0
        else:
            self.put("stderr", f"'{program}' is not recognized as an internal or external command,\r\n".encode())
            self.code = 9009
        self.put(None, b"")

    def put(self, stream, data):
        while not self.gone:
            try:
                return self.output.put((stream, data), timeout=1)
            except queue.Full:
                pass
        raise SystemExit

    def line(self):
        while b"\n" not in self.rest:
            if self.ended:
                return None
            data = self.input.get()
            if data is None:
                self.ended = True
            else:
                self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line.strip()

    def receive(self, seconds, most):
        """What was said since, at most so many bytes; a fault if nothing is said for that long."""
        said = []
        try:
            said.append(self.output.get(timeout=seconds))
            while sum(len(data) for _, data in said) < most and said[-1][0]:
                said.append(self.output.get_nowait())
        except queue.Empty:
            pass
        if not said:
            raise Fault(TIMED_OUT, "The WS-Management service cannot complete the operation within the time specified in OperationTimeout.  ")
        return said


class Service:
    def __init__(self, arguments):
        self.folder, self.basic = arguments.folder, arguments.basic
        self.user, self.password = arguments.user, arguments.password
        self.shells, self.lock = {}, threading.Lock()
        self.log = open(os.path.join(arguments.folder, "log"), "a", buffering=1)

    def answer(self, request):
        """The body of the answer to an envelope, and its action."""
        root = ElementTree.fromstring(request)
        text = lambda path: root.findtext(path, "", NAMES).strip()
        action = text("s:Header/a:Action")
        if text("s:Header/w:ResourceURI") != SHELL + "/cmd":
            raise Fault(2150858778, "The WS-Management service cannot process the request because the resource URI is not known.")
        if not text("s:Header/a:MessageID").startswith("uuid:"):
            raise Fault(2150858770, "The WS-Management service cannot process a request without a message identity.")
        most = int(text("s:Header/w:MaxEnvelopeSize") or 150 * 1024)
        seconds = float(re.fullmatch(r"PT([0-9.]+)S", text("s:Header/w:OperationTimeout"))[1])
        self.log.write(action.rsplit("/", 1)[1] + "\n")
        body = root.find("s:Body", NAMES)
        if action == TRANSFER + "/Create":
            shell = str(uuid.uuid4()).upper()
            with self.lock:
                self.shells[shell] = {}
            return action, (
                f'<x:ResourceCreated xmlns:x="{TRANSFER}"><a:Address>http://host/wsman</a:Address><a:ReferenceParameters>'
                f'<w:ResourceURI>{SHELL}/cmd</w:ResourceURI><w:SelectorSet><w:Selector Name="ShellId">{shell}</w:Selector>'
                f"</w:SelectorSet></a:ReferenceParameters></x:ResourceCreated>"
                f"<rsp:Shell><rsp:ShellId>{shell}</rsp:ShellId><rsp:InputStreams>stdin</rsp:InputStreams>"
                f"<rsp:OutputStreams>stdout stderr</rsp:OutputStreams></rsp:Shell>")
        shell = root.findtext("s:Header/w:SelectorSet/w:Selector[@Name='ShellId']", "", NAMES)
        commands = self.shells.get(shell)
        if commands is None:
            raise Fault(2150858843, "The request for the Windows Remote Shell with ShellId failed because the shell was not found on the server.")
        if action == TRANSFER + "/Delete":
            for command in self.shells.pop(shell).values():
                command.gone = True
            return action, ""
        if action == SHELL + "/Command":
            line = body.findtext("rsp:CommandLine/rsp:Command", "", NAMES)
            for argument in body.findall("rsp:CommandLine/rsp:Arguments", NAMES):
                line += " " + (argument.text or "")
            if len(line) > 8191:
                raise Fault(2147942487, "The command line is too long.")
            identity = str(uuid.uuid4()).upper()
            commands[identity] = Command(self.folder, line)
            return action, f"<rsp:CommandResponse><rsp:CommandId>{identity}</rsp:CommandId></rsp:CommandResponse>"
        holder = next(iter(body)) if len(body) else None
        stream = holder.find("rsp:Stream", NAMES) if holder is not None else None
        desired = holder.find("rsp:DesiredStream", NAMES) if holder is not None else None
        named = next((one.get("CommandId") for one in (stream, desired, holder) if one is not None and one.get("CommandId")), None)
        command = commands.get(named)
        if command is None:
            raise Fault(2150858843, "The command was not found.")
        if action == SHELL + "/Send":
            command.input.put(base64.b64decode(stream.text or ""))
            if stream.get("End") == "true":
                command.input.put(None)
            return action, "<rsp:SendResponse/>"
        if action == SHELL + "/Receive":
            streams, state = "", "Running"
            for name, data in command.receive(min(seconds, 20), most // 2):
                if name:
                    streams += f'<rsp:Stream Name="{name}" CommandId="{named}">{base64.b64encode(data).decode()}</rsp:Stream>'
                else:
                    state = "Done"
            code = f"<rsp:ExitCode>{command.code}</rsp:ExitCode>" if state == "Done" else ""
            return action, (
                f"<rsp:ReceiveResponse>{streams}<rsp:CommandState CommandId=\"{named}\" State=\"{SHELL}/CommandState/{state}\">"
                f"{code}</rsp:CommandState></rsp:ReceiveResponse>")
        if action == SHELL + "/Signal":
            command.gone = True
            command.input.put(None)
            return action, "<rsp:SignalResponse/>"
        raise Fault(2150858817, "The WS-Management service cannot process the request because the action is not supported.")


def envelope(action, body, relates):
    return (
        f'<s:Envelope xml:lang="en-US" xmlns:s="{SOAP}" xmlns:a="{ADDRESSING}" xmlns:w="{WSMAN}" xmlns:rsp="{SHELL}"><s:Header>'
        f"<a:Action>{action}Response</a:Action><a:MessageID>uuid:{str(uuid.uuid4()).upper()}</a:MessageID>"
        f"<a:To>{ADDRESSING}/role/anonymous</a:To><a:RelatesTo>{escape(relates)}</a:RelatesTo></s:Header>"
        f"<s:Body>{body}</s:Body></s:Envelope>").encode()


def faulty(fault):
    return (
        f"<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>w:InternalError</s:Value></s:Subcode></s:Code>"
        f'<s:Reason><s:Text xml:lang="en-US">{escape(str(fault))}</s:Text></s:Reason><s:Detail>'
        f'<f:WSManFault xmlns:f="{FAULT}" Code="{fault.code}" Machine="host"><f:Message>{escape(str(fault))}</f:Message>'
        f"</f:WSManFault></s:Detail></s:Fault>")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    context = None
    known = False

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        service = self.server.service
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        is_tls = isinstance(self.connection, ssl.SSLSocket)
        if authorization.startswith("Basic ") and service.basic:
            given = base64.b64decode(authorization[6:]).decode()
            if not is_tls:
                service.log.write("a password in the clear\n")
            if given != f"{service.user}:{service.password}":
                return self.reply(401, headers=[("WWW-Authenticate", 'Basic realm="WSMAN"')])
        elif authorization.startswith("Negotiate ") and not service.basic:
            return self.negotiate(base64.b64decode(authorization[10:]), body)
        elif not self.known:
            offers = ['Basic realm="WSMAN"'] if service.basic else ["Negotiate"]
            return self.reply(401, headers=[("WWW-Authenticate", offer) for offer in offers])
        sealed = self.headers.get("Content-Type", "").startswith("multipart/encrypted")
        if not sealed and not is_tls:
            # AllowUnencrypted is false, as it is everywhere.
            return self.reply(415)
        request = self.unseal(body) if sealed else body
        self.serve(request, sealed)

    def negotiate(self, token, body):
        """NTLM knows connections, not requests."""
        service = self.server.service
        if self.context is None or self.context.complete:
            binding = None
            if isinstance(self.connection, ssl.SSLSocket):
                data = b"tls-server-end-point:" + bytes.fromhex(self.server.thumbprint.replace(":", ""))
                binding = spnego.channel_bindings.GssChannelBindings(application_data=data)
            self.known = False
            self.context = spnego.server("host", "http", channel_bindings=binding, protocol="ntlm")
        try:
            answer = self.context.step(token)
        except Exception as error:
            service.log.write(f"refused: {error}\n")
            self.context = None
            return self.reply(401, headers=[("WWW-Authenticate", "Negotiate")])
        if not self.context.complete:
            token = base64.b64encode(answer).decode()
            return self.reply(401, headers=[("WWW-Authenticate", f"Negotiate {token}")])
        self.known = True
        # A client may have sent its message along.
        if not body:
            return self.reply(200)
        sealed = self.headers.get("Content-Type", "").startswith("multipart/encrypted")
        self.serve(self.unseal(body) if sealed else body, sealed)

    def unseal(self, body):
        content = body.split(b"application/octet-stream\r\n", 1)[1]
        content = content[:content.rindex(b"--Encrypted Boundary--")]
        length = int.from_bytes(content[:4], "little")
        return self.context.unwrap_winrm(content[4:4 + length], content[4 + length:])

    def serve(self, request, sealed):
        service = self.server.service
        relates = re.search(rb"MessageID>([^<]*)<", request)
        status = 200
        wrong = self.fault(request)
        if wrong == "done":
            return
        try:
            # What goes wrong does nothing.
            action, body = ("", "") if wrong else service.answer(request)
        except Fault as fault:
            status, action, body = 500, ADDRESSING + "/fault", faulty(fault)
        answer = wrong or envelope(action, body, relates[1].decode() if relates else "")
        if not sealed:
            return self.reply(status, answer, [("Content-Type", "application/soap+xml;charset=UTF-8")])
        wrapped = self.context.wrap_winrm(answer)
        length = len(wrapped.header).to_bytes(4, "little")
        sealed = (
            b"--Encrypted Boundary\r\n\tContent-Type: " + KIND.encode() + b"\r\n\tOriginalContent: type=application/soap+xml;"
            b"charset=UTF-8;Length=" + str(len(answer) + wrapped.padding_length).encode() + b"\r\n--Encrypted Boundary\r\n\tContent-Type: "
            b"application/octet-stream\r\n" + length + wrapped.header + wrapped.data + b"--Encrypted Boundary--\r\n")
        if self.tampers:
            sealed = sealed[:-60] + bytes([sealed[-60] ^ 1]) + sealed[-59:]
        self.reply(status, sealed, [("Content-Type", f'multipart/encrypted;protocol="{KIND}";boundary="Encrypted Boundary"')])

    tampers = False

    def fault(self, request):
        """One line of FOLDER/fault is `KIND ACTION COUNT`: the next COUNT messages of that action go wrong."""
        path = os.path.join(self.server.service.folder, "fault")
        self.tampers = False
        with self.server.service.lock:
            try:
                with open(path) as file:
                    kind, action, count = file.read().split()
            except (FileNotFoundError, ValueError):
                return None
            if f"/{action}<".encode() not in request:
                return None
            left = int(count) - 1
            if left > 0:
                with open(path + ".new", "w") as file:
                    file.write(f"{kind} {action} {left}")
                os.replace(path + ".new", path)
            else:
                os.remove(path)
        if kind == "hang-up":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return "done"
        if kind == "forget":
            self.known, self.context = False, None
            self.reply(401, headers=[("WWW-Authenticate", "Negotiate")])
            return "done"
        if kind == "silent":
            time.sleep(600)
        if kind == "endless":
            self.send_response(200)
            self.send_header("Content-Type", "application/soap+xml;charset=UTF-8")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"<a>" * 20000)
            except OSError:
                self.close_connection = True
                return "done"
        if kind == "unencrypted":
            self.reply(200, envelope("x", "<rsp:SendResponse/>", ""), [("Content-Type", "application/soap+xml;charset=UTF-8")])
            return "done"
        if kind == "tamper":
            self.tampers = True
        if kind == "later":
            # As a service says when a program has nothing to say.
            return envelope(ADDRESSING + "/fault", faulty(Fault(TIMED_OUT, "It is not done yet.")), "")
        if kind == "fault":
            return envelope(ADDRESSING + "/fault", faulty(Fault(2150859174, "The WS-Management service cannot process the request. "
                            "The maximum number of concurrent shells for this user has been exceeded.")), "")
        if kind == "garbage":
            return b"<html>Not here</html>"
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        # Clients that hang up are part of the tests.
        pass


def certificate(folder):
    key, pem = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", pem, "-days", "30",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-sha256"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(pem) as file:
        der = ssl.PEM_cert_to_DER_cert(file.read())
    digest = hashlib.sha256(der).hexdigest().upper()
    return key, pem, ":".join(digest[at:at + 2] for at in range(0, 64, 2))


def serve(arguments):
    service = Service(arguments)
    users = tempfile.NamedTemporaryFile("w", suffix=".users")
    domain, _, user = arguments.user.rpartition("\\")
    users.write(f"{domain}:{user}:{arguments.password}\n")
    users.flush()
    os.environ["NTLM_USER_FILE"] = users.name
    key, pem, thumbprint = certificate(arguments.folder)
    plain, secure = Server(("127.0.0.1", 0), Handler), Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    for server in (plain, secure):
        server.service, server.thumbprint = service, thumbprint
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"thumbprint {thumbprint}")
    print(f"ready 127.0.0.1:{plain.server_port} 127.0.0.1:{secure.server_port}", flush=True)
    # It ends with whoever started it.
    sys.stdin.read()


def client(arguments):
    import winrm
    options = {"server_cert_validation": "ignore"} if arguments.url.startswith("https") else {"message_encryption": "always"}
    session = winrm.Session(arguments.url, auth=(arguments.user, arguments.password), transport="ntlm", **options)
    result = session.run_cmd("echo", ["it", "speaks", "what", "pywinrm", "speaks"])
    print(result.status_code, result.std_out.decode().strip())


def syntax(arguments):
    import tree_sitter
    import tree_sitter_powershell
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    wrong = []
    for path in arguments.files:
        with open(path, "rb") as file:
            text = file.read()
        nodes = [parser.parse(text).root_node]
        while nodes:
            node = nodes.pop()
            if node.type == "ERROR" or node.is_missing:
                wrong.append(f"{path}:{node.start_point[0] + 1}: {text[node.start_byte:node.end_byte][:60]!r}")
            nodes.extend(node.children)
    sys.exit("\n".join(wrong) or None)


def main():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("serve")
    verb.add_argument("folder")
    verb.add_argument("--basic", action="store_true")
    verb.add_argument("--user", default="Administrator")
    verb.add_argument("--password", default="secret")
    verb.set_defaults(run=serve)
    verb = verbs.add_parser("client")
    for name in ("url", "user", "password"):
        verb.add_argument(name)
    verb.set_defaults(run=client)
    verb = verbs.add_parser("syntax")
    verb.add_argument("files", nargs="+")
    verb.set_defaults(run=syntax)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
