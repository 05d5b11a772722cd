"""What PowerShell on a Hyper-V host would answer to Omnivisor's scripts, by Microsoft's documentation of the cmdlets.

A script is known by its text. The host's VMs are in model.json, which scripts that change something write back.
"""

import base64
import fcntl
import json
import os
import sys
import time
import uuid
import zlib

SCRIPTS = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../../crates/platform/src/hyperv/scripts")
BLOCK = 1 << 20


class Complaint(Exception):
    """An error as PowerShell has it: message, FullyQualifiedErrorId, category."""

    def __init__(self, message, identity=None, category="OperationStopped"):
        super().__init__(message)
        self.identity = identity or message
        self.category = category


class Host:
    """The VMs of model.json, locked while they are looked at."""

    def __init__(self, folder):
        self.folder = folder
        self.path = os.path.join(folder, "model.json")

    def __enter__(self):
        self.lock = open(os.path.join(self.folder, "lock"), "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        with open(self.path, encoding="utf-8") as file:
            self.model = json.load(file)
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            with open(self.path + ".new", "w", encoding="utf-8") as file:
                json.dump(self.model, file, indent=1)
            os.replace(self.path + ".new", self.path)
        self.lock.close()

    def check(self):
        if not self.model.get("module", True):
            raise Complaint(
                "The term 'Get-VM' is not recognized as the name of a cmdlet, function, script file, or operable program.",
                "CommandNotFoundException", "ObjectNotFound")
        if self.model.get("denied"):
            raise Complaint(
                "You do not have the required permission to complete this task. Contact the administrator of the "
                "authorization policy for the computer 'HOST'.",
                "AccessDenied,Microsoft.HyperV.PowerShell.Commands.GetVM", "PermissionDenied")

    def find(self, name):
        self.check()
        found = [vm for vm in self.model["vms"] if vm["name"] == name]
        found = found or [vm for vm in self.model["vms"] if vm["id"].lower() == name.lower()]
        if not found:
            raise Complaint("OmnivisorNotFound")
        if len(found) > 1:
            raise Complaint("OmnivisorAmbiguous " + " ".join(vm["id"] for vm in found))
        return found[0]

    def snapshot(self, vm, name):
        found = [one for one in vm["snapshots"] if one["name"] == name]
        found = found or [one for one in vm["snapshots"] if one["id"] == name]
        if not found:
            raise Complaint("OmnivisorNoSnapshot")
        return found[0]

    def disk(self, path):
        for known, disk in self.model["disks"].items():
            if known.lower() == path.lower():
                return os.path.join(self.folder, disk["file"]), disk.get("parent")
        raise Complaint(f"Cannot find path '{path}' because it does not exist.",
                        "PathNotFound,Microsoft.PowerShell.Commands.GetItemCommand", "ObjectNotFound")

    def chain(self, path):
        chain = []
        while path:
            file, parent = self.disk(path)
            chain.append({"path": path, "length": os.path.getsize(file), "stamp": stamp(file)})
            path = parent
        return chain


def stamp(file):
    """LastWriteTimeUtc.Ticks: tenths of microseconds since the year 1."""
    return str(os.stat(file).st_mtime_ns // 100 + 621_355_968_000_000_000)


def summary(vm):
    running = vm["state"] == "Running"
    return {"name": vm["name"], "id": vm["id"], "state": vm["state"], "status": vm.get("status", "Operating normally"),
            "cpus": vm["cpus"], "memory": vm["memory"]["size"], "addresses": vm.get("addresses", []) if running else []}


def product(host, words):
    model = host.model
    denied = None
    try:
        host.check()
    except Complaint as complaint:
        denied = str(complaint) if model.get("module", True) else None
    return {"system": "Microsoft Windows Server 2022 Standard", "version": "10.0.20348",
            "module": "2.0.0.0" if model.get("module", True) else None, "denied": denied, "powershell": "5.1.20348.2849"}


def listed(host, words):
    host.check()
    return {"vms": [summary(vm) for vm in host.model["vms"]]}


def show(host, words):
    vm = host.find(words[0])
    keep = ("generation", "version", "notes", "cpus", "threads", "nested", "memory", "firmware", "security", "scsi",
            "drives", "nics", "ports")
    return {"summary": summary(vm), **{key: vm[key] for key in keep if key in vm}}


def snapshots(host, words):
    vm = host.find(words[0])
    return {"snapshots": [{**one, "current": one["id"] == vm.get("parent")} for one in vm["snapshots"]]}


def state_error(vm, verb):
    return Complaint(
        f"'{vm['name']}' failed to {verb}. The operation cannot be performed while the object is in its current state.",
        "InvalidState,Microsoft.HyperV.PowerShell.Commands", "NotSpecified")


def checkpoint(host, vm, name):
    one = {"id": str(uuid.uuid4()), "name": name, "parent": vm.get("parent"), "notes": "", "type": "Standard",
           "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "state": vm["state"],
           "disks": {json.dumps([d["bus"], d["controller"], d["unit"]]): d["path"] for d in vm["drives"] if d["kind"] == "disk"}}
    vm["snapshots"].append(one)
    vm["parent"] = one["id"]
    for drive in vm["drives"]:
        if drive["kind"] == "disk" and drive.get("path"):
            child = drive["path"].rsplit(".", 1)[0] + "_" + one["id"].upper() + ".avhdx"
            # What the guest writes from here on; nobody reads it.
            file = f"child-{one['id']}-{drive['unit']}"
            open(os.path.join(host.folder, file), "wb").close()
            host.model["disks"][child] = {"file": file, "parent": drive["path"]}
            drive["path"] = child
    return one


def remove(host, vm, one):
    vm["snapshots"].remove(one)
    vm["parent"] = one["parent"]
    for drive in vm["drives"]:
        key = json.dumps([drive.get("bus"), drive.get("controller"), drive.get("unit")])
        if drive["kind"] == "disk" and key in one["disks"]:
            host.model["disks"].pop(drive["path"], None)
            drive["path"] = one["disks"][key]


def perform(host, words):
    vm = host.find(words[0])
    verb = words[1]
    state = vm["state"]
    moves = {
        "start": (("Off", "Saved"), "Running"), "turn-off": (("Running", "Paused"), "Off"), "pause": (("Running",), "Paused"),
        "resume": (("Paused", "Saved", "Off"), "Running"), "reset": (("Running", "Paused"), "Running"),
        "stop": (("Running",), "Off"), "reboot": (("Running",), "Running"),
    }
    if verb in moves:
        before, after = moves[verb]
        if verb in ("stop", "reboot"):
            if state != "Running":
                raise Complaint("OmnivisorState " + state)
            if vm.get("deaf"):
                raise Complaint("OmnivisorGuest 32768")
        if state not in before:
            raise state_error(vm, "change state")
        vm["state"] = after
    elif verb == "snapshot":
        checkpoint(host, vm, words[2])
    elif verb == "revert":
        one = host.snapshot(vm, words[2])
        vm["parent"], vm["state"] = one["id"], "Saved" if one["state"] == "Running" else "Off"
    elif verb == "delete":
        remove(host, vm, host.snapshot(vm, words[2]))
    return None


def hold(host, words):
    vm = host.find(words[0])
    kept = None
    if vm["state"] not in ("Off", "Saved"):
        kept = next((one for one in vm["snapshots"] if one["name"] == words[1]), None)
        kept = kept or checkpoint(host, vm, words[1])
    disks = []
    for drive in vm["drives"]:
        if drive["kind"] != "disk":
            continue
        key = json.dumps([drive["bus"], drive["controller"], drive["unit"]])
        path = kept["disks"].get(key) if kept else drive.get("path")
        chain = host.chain(path) if drive.get("disk") is None else []
        disks.append({"bus": drive["bus"], "controller": drive["controller"], "unit": drive["unit"], "chain": chain})
    return {"checkpoint": kept and kept["id"], "disks": disks}


def release(host, words):
    vm = host.find(words[0])
    for one in [one for one in vm["snapshots"] if one["id"] == words[1]]:
        remove(host, vm, one)
    return None


def chain(host, words):
    host.check()
    return {"chain": host.chain(words[0])}


ANSWERS = {"product": product, "list": listed, "show": show, "snapshots": snapshots, "perform": perform, "hold": hold,
           "release": release, "chain": chain}


def read(name):
    with open(os.path.join(SCRIPTS, name + ".ps1"), encoding="utf-8") as file:
        return file.read()


def known(script):
    """The name of a script by its text."""
    for name in [*ANSWERS, "read"]:
        if script == read("common") + "\n" + read(name):
            return name
    return None


class Shell:
    """One run of powershell: `line` gives the next line of standard input or None, `write` takes bytes of output."""

    def __init__(self, folder, line, write, complain):
        self.folder, self.line, self.write, self.complain = folder, line, write, complain

    def say(self, text):
        self.write(text.encode() + b"\r\n" if text.startswith("WARNING") else text.encode() + b"\n")

    def give(self, data):
        for at in range(0, len(data), 49152):
            self.say(">" + base64.b64encode(data[at:at + 49152]).decode())

    def fail(self, complaint):
        value = {"message": str(complaint), "id": complaint.identity, "category": complaint.category}
        self.say("!" + base64.b64encode(json.dumps(value).encode()).decode())

    def run(self, arguments):
        """The exit code."""
        words = arguments.split()
        if words[:3] != ["-NoProfile", "-NonInteractive", "-EncodedCommand"] or len(words) != 4:
            self.complain(b"The argument is not recognized as the name of a script file.\r\n")
            return 64
        start = base64.b64decode(words[3]).decode("utf-16-le")
        if start != read("start"):
            self.complain(b'#< CLIXML\r\n<Objs Version="1.1.0.1" xmlns="http://schemas.microsoft.com/powershell/2004/04">'
                          b'<S S="Error">Another script was expected._x000D__x000A_</S></Objs>')
            return 1
        lines = [self.line(), self.line()]
        if None in lines:
            self.complain(b"The script is missing.\r\n")
            return 1
        script, given = [base64.b64decode(line).decode() for line in lines]
        name, given = known(script), given.split("\0")
        # What a host prints besides is no answer.
        self.say("WARNING: A module was loaded.")
        try:
            if name == "read":
                return self.serve()
            if name is None:
                raise Complaint("Unexpected token in expression or statement.", "ParseException", "ParserError")
            with Host(self.folder) as host:
                answer = ANSWERS[name](host, given)
            if answer is not None:
                self.give(json.dumps(answer, ensure_ascii=False).encode())
            self.say(".")
            return 0
        except Complaint as complaint:
            self.fail(complaint)
            return 1

    def serve(self):
        while line := self.line():
            path, offset, length = base64.b64decode(line).decode().split("\0")
            try:
                with Host(self.folder) as host:
                    file, _ = host.disk(path)
                with open(file, "rb") as disk:
                    disk.seek(int(offset))
                    left = int(length)
                    self.give(json.dumps({"length": os.path.getsize(file), "stamp": stamp(file)}).encode())
                    self.say("=")
                    while left > 0 and (data := disk.read(min(left, BLOCK))):
                        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
                        self.give(packer.compress(data) + packer.flush())
                        self.say("=")
                        left -= len(data)
                    self.say("+")
            except Complaint as complaint:
                self.fail(complaint)
        self.say(".")
        return 0


if __name__ == "__main__":
    def take():
        line = sys.stdin.buffer.readline()
        return line.strip() if line else None

    def put(data, stream=sys.stdout.buffer):
        stream.write(data)
        stream.flush()

    shell = Shell(sys.argv[1], take, put, lambda data: put(data, sys.stderr.buffer))
    sys.exit(shell.run(" ".join(sys.argv[2:])))
