#!/usr/bin/env python3
"""Peers of libtorrent for bench/swarm and for tests of interoperation.

  libtorrent.py serve                    answers requests, one JSON object a line
  libtorrent.py seed  --torrent FILE --content FILE [--address A] [--port P] [--tracker URL]
  libtorrent.py leech --torrent FILE --into DIR     [--address A] [--port P] [--tracker URL]
  libtorrent.py version

seed and leech print one JSON object a line as things happen: {"event": "listening",
"port": N}, "announced", "finished" (with "elapsed_ns", "received", "sha256"),
"error". A seeder ends when its standard input does; a leecher as soon as it
has the file, or, with --stay, like a seeder.

serve is one process for many measurements, so that none pays for the start of an
interpreter. For each request it makes new sessions: one seeder and so many
leechers, each on an address of its own in 127.0.0.0/8, files in memory (tmpfs).
With "isolation": "process" each leecher is a process of its own, made before
it is told to start. A leecher's time is from just before its torrent is added
until the thread that waits for its alerts has torrent_finished, which follows
the check of the last piece.
"""

import argparse
import hashlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

# This file's own directory comes first in the path, and its name is the module's.
sys.path = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(os.path.abspath(__file__))]

import libtorrent as lt  # noqa: E402

MASK = lt.alert_category.status | lt.alert_category.error | lt.alert_category.tracker | lt.alert_category.storage

# Without these a session talks to the network beyond the swarm; nothing else of
# the defaults is touched.
ALONE = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "alert_mask": MASK,
    # The default refuses a second peer from an address; trackers see loopback's.
    "allow_multiple_connections_per_ip": True,
}

# Chosen for one seeder and three leechers on loopback without limits of rates.
# Changed one at a time with 2 cores (4 rounds at 1 and 10 MB, 1 at 100 MB) and not
# told apart from it: pieces of 16 KiB to 1 MiB, files mapped or written,
# suggest_mode, predictive_piece_announce, piece_extent_affinity, socket buffers,
# other watermarks and queues, leechers in processes of their own (at twice the
# processor time). Encryption was slower (10 and 100 kB). Not tuned for limits.
TUNED = {
    # uTP costs several times TCP's time on loopback.
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "mixed_mode_algorithm": int(lt.bandwidth_mixed_algo_t.prefer_tcp),
    # Everybody is unchoked at once.
    "unchoke_slots_limit": -1,
    "choking_algorithm": int(lt.choking_algorithm_t.fixed_slots_choker),
    "allowed_fast_set_size": 100,
    # No waiting between connections.
    "connection_speed": 1000,
    "torrent_connect_boost": 255,
    "smooth_connects": False,
    "min_reconnect_time": 1,
    "tick_interval": 100,
    "listen_queue_size": 200,
    "connections_limit": 1000,
    # Deep queues.
    "max_out_request_queue": 2000,
    "max_allowed_in_request_queue": 4000,
    "send_buffer_watermark": 4 << 20,
    "send_buffer_low_watermark": 1 << 20,
    "send_buffer_watermark_factor": 150,
    "max_queued_disk_bytes": 64 << 20,
    # No slower than the default of ten, with less processor time.
    "aio_threads": 2,
    "hashing_threads": 1,
    # Limits are of what is sent by the socket, for everybody.
    "rate_limit_ip_overhead": False,
    "announce_to_all_trackers": True,
    "announce_to_all_tiers": True,
    # Plaintext: pe_disabled, pe_plaintext.
    "out_enc_policy": 2,
    "in_enc_policy": 2,
    "allowed_enc_level": 1,
}

# With one piece or so, TCP loses 40 ms to an acknowledgement that is delayed;
# uTP, tried first, does not.
SMALL = 64 << 10
TUNED_SMALL = {"enable_incoming_utp": True, "enable_outgoing_utp": True}


def settings(variant, size, address, port, upload, download, overrides):
    s = dict(ALONE)
    if variant == "tuned":
        s.update(TUNED)
        if size <= SMALL:
            s.update(TUNED_SMALL)
    s["listen_interfaces"] = "%s:%d" % (address, port)
    s["upload_rate_limit"] = upload
    s["download_rate_limit"] = download
    s.update(overrides or {})
    return s


class Peer:
    def __init__(self, request, address, port=0, upload=0, download=0):
        self.variant = request["variant"]
        self.super_seed = request.get("super_seed", False)
        self.handle = None
        self.session = lt.session(settings(self.variant, request["size"], address, port, upload, download, request.get("settings")))
        # wait_for_alert hands out a pointer into a queue that may be moved before
        # it is looked at: it crashes now and then.
        self.notified, self.notify = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.session.set_alert_fd(self.notify)
        if upload or download:
            # Otherwise limits do not hold for local addresses.
            everybody = lt.ip_filter()
            everybody.add_rule("0.0.0.0", "255.255.255.255", 1 << lt.session.global_peer_class_id)
            self.session.set_peer_class_filter(everybody)
        alert, _ = self.wait_for("listen_succeeded_alert", timeout=10)
        self.port = alert.port

    def wait_for(self, *names, timeout):
        """The first alert of these names and when it came; raises on errors and when time is up."""
        end = time.monotonic() + timeout
        while True:
            alerts = self.session.pop_alerts()
            now = time.monotonic_ns()
            for a in alerts:
                kind = type(a).__name__
                if kind in ("torrent_error_alert", "file_error_alert", "listen_failed_alert", "hash_failed_alert"):
                    raise RuntimeError(a.message())
                if kind in names:
                    return a, now
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("no %s within %g s" % (" or ".join(names), timeout))
            select.select([self.notified], [], [], left)
            try:
                os.read(self.notified, 4096)
            except BlockingIOError:
                pass

    def close(self):
        self.handle = self.session = None  # waits until the session has ended
        os.close(self.notified)
        os.close(self.notify)

    def params(self, raw, directory, tracker, seeder):
        # A torrent_info made in Python would be let go of by the session's thread,
        # without the interpreter's lock: it crashes.
        p = lt.load_torrent_buffer(raw)
        p.save_path = directory
        if tracker:
            p.trackers = [tracker]
        if seeder:
            p.flags |= lt.torrent_flags.seed_mode
            if self.super_seed:
                p.flags |= lt.torrent_flags.super_seeding
        # Queued torrents wait for the session's next tick, half a second at most,
        # which says nothing about swarms: none waits here.
        p.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        if self.variant == "tuned":
            p.max_uploads = -1
            p.max_connections = -1
        return p

    def add(self, params):
        self.handle = self.session.add_torrent(params)

    def finish(self, timeout):
        _, now = self.wait_for("torrent_finished_alert", timeout=timeout)
        return now

    def received(self):
        self.session.post_session_stats()
        a, _ = self.wait_for("session_stats_alert", timeout=10)
        v = a.values
        return v["net.recv_bytes"] + v["net.recv_tracker_bytes"]

    def flush(self):
        self.handle.flush_cache()
        self.wait_for("cache_flushed_alert", timeout=30)


def make_torrent(content, tracker, piece):
    storage = lt.file_storage()
    storage.add_file(os.path.basename(content), os.path.getsize(content))
    t = lt.create_torrent(storage, piece, lt.create_torrent.v1_only)
    if tracker:
        t.add_tracker(tracker)
    lt.set_piece_hashes(t, os.path.dirname(content))
    return lt.bencode(t.generate())


def tuned_piece(size):
    piece = 16 << 10
    while piece < 1 << 20 and size > piece * 64:
        piece *= 2
    return piece


def hash_of(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def await_ready(url, info):
    quoted = urllib.parse.quote(info.info_hash().to_bytes())
    with urllib.request.urlopen("%s?info_hash=%s" % (url, quoted), timeout=30) as r:
        r.read()


def leecher_address(i):
    return "127.0.%d.%d" % (1 + i // 250, 1 + i % 250)  # the seeder is 127.0.0.2


def transfer(request):
    piece = request.get("piece") or (tuned_piece(request["size"]) if request["variant"] == "tuned" else 0)
    raw = make_torrent(request["content"], None, piece)
    info = lt.torrent_info(lt.bdecode(raw))
    # Beside the content, which is in memory: whoever asks cleans up if this is killed.
    scratch = tempfile.mkdtemp(dir=os.path.dirname(request["content"]))
    seeder = None
    try:
        seeder = Peer(request, "127.0.0.2", upload=request.get("seed_upload", 0))
        seeder.add(seeder.params(raw, os.path.dirname(request["content"]), request["tracker"], True))
        await_ready(request["ready"], info)
        if request.get("isolation") == "process":
            out = in_processes(request, raw, scratch)
        else:
            out = in_threads(request, raw, scratch)
        out["piece"] = info.piece_length()
        return out
    finally:
        if seeder:
            seeder.close()
        shutil.rmtree(scratch)


def in_threads(request, raw, scratch):
    n = request["leechers"]
    results = [None] * n
    # What has one session each must not wait for another's to be made.
    begin = threading.Barrier(n)
    ended = threading.Barrier(n)

    def leech(i):
        result = {"elapsed_ns": -1, "received": 0, "checked": False, "error": ""}
        results[i] = result
        directory = os.path.join(scratch, str(i))
        os.mkdir(directory)
        peer = None
        try:
            peer = Peer(request, leecher_address(i), upload=request.get("upload", 0), download=request.get("download", 0))
            params = peer.params(raw, directory, request["tracker"], False)
        except Exception as e:
            result["error"] = str(e)
            begin.abort()
            return
        try:
            begin.wait(60)
            t = time.monotonic_ns()
            peer.add(params)
            result["elapsed_ns"] = peer.finish(request["timeout_s"]) - t
        except Exception as e:
            result["error"] = str(e)
        try:
            # All keep serving the others until the last has everything.
            ended.wait(request["timeout_s"] + 60)
            result["received"] = peer.received()
            if not result["error"]:
                peer.flush()
                result["checked"] = hash_of(os.path.join(directory, os.path.basename(request["content"]))) == request["sha256"]
        except Exception as e:
            result["error"] = result["error"] or str(e)
        peer.close()

    threads = [threading.Thread(target=leech, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return {"leechers": results}


def in_processes(request, raw, scratch):
    workers = []
    try:
        for i in range(request["leechers"]):
            w = subprocess.Popen([sys.executable, os.path.abspath(__file__), "worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers.append(w)
            directory = os.path.join(scratch, str(i))
            os.mkdir(directory)
            torrent = os.path.join(scratch, "%d.torrent" % i)
            with open(torrent, "wb") as f:
                f.write(raw)
            put(w.stdin, dict(request, address=leecher_address(i), into=directory, torrent=torrent))
        for w in workers:
            get(w)
        for w in workers:
            put(w.stdin, {"do": "start"})
        results = [get(w) for w in workers]
        for w in workers:
            put(w.stdin, {"do": "report"})
        for w, r in zip(workers, results):
            r.update(get(w))
        return {"leechers": results}
    finally:
        for w in workers:
            w.stdin.close()
            w.wait(60)


def put(f, value):
    f.write(json.dumps(value) + "\n")
    f.flush()


def get(worker):
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a leecher's process has ended")
    return json.loads(line)


def worker():
    request = json.loads(sys.stdin.readline())
    with open(request["torrent"], "rb") as f:
        raw = f.read()
    peer = Peer(request, request["address"], upload=request.get("upload", 0), download=request.get("download", 0))
    params = peer.params(raw, request["into"], request["tracker"], False)
    put(sys.stdout, {"ready": True})
    sys.stdin.readline()
    result = {"elapsed_ns": -1, "error": ""}
    try:
        t = time.monotonic_ns()
        peer.add(params)
        result["elapsed_ns"] = peer.finish(request["timeout_s"]) - t
    except Exception as e:
        result["error"] = str(e)
    put(sys.stdout, result)
    sys.stdin.readline()
    after = {"received": peer.received(), "checked": False}
    if not result["error"]:
        peer.flush()
        after["checked"] = hash_of(os.path.join(request["into"], os.path.basename(request["content"]))) == request["sha256"]
    put(sys.stdout, after)


def processor_time():
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        u = resource.getrusage(who)
        total += u.ru_utime + u.ru_stime
    return int(total * 1e9)


def serve():
    for line in sys.stdin:
        before = processor_time()
        try:
            out = transfer(json.loads(line))
        except Exception as e:
            out = {"error": "%s: %s" % (type(e).__name__, e), "leechers": []}
        out["cpu_ns"] = processor_time() - before
        put(sys.stdout, out)


def say(**values):
    put(sys.stdout, values)


def single(args, seeder):
    with open(args.torrent, "rb") as f:
        raw = f.read()
    info = lt.torrent_info(lt.bdecode(raw))
    size = info.total_size()
    overrides = dict(one.split("=", 1) for one in args.set)
    request = {"variant": args.variant, "size": size, "settings": {k: json.loads(v) for k, v in overrides.items()}}
    peer = Peer(request, args.address, args.port)
    say(event="listening", port=peer.port)
    directory = os.path.dirname(os.path.abspath(args.content)) if seeder else args.into
    params = peer.params(raw, directory, args.tracker, seeder)
    if seeder:
        params.renamed_files = {0: os.path.basename(args.content)}
    t = time.monotonic_ns()
    peer.add(params)
    try:
        if seeder:
            peer.wait_for("tracker_reply_alert", timeout=args.timeout)
            say(event="announced")
        else:
            now = peer.finish(args.timeout)
            peer.flush()
            path = os.path.join(directory, info.files().file_path(0))
            say(event="finished", elapsed_ns=now - t, received=peer.received(), sha256=hash_of(path), path=path)
    except Exception as e:
        say(event="error", error=str(e))
        return 1
    if seeder or args.stay:
        sys.stdin.read()
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "worker", "version"):
        commands.add_parser(name)
    for name in ("seed", "leech"):
        c = commands.add_parser(name)
        c.add_argument("--torrent", required=True, help="the .torrent file")
        c.add_argument("--address", default="127.0.0.1", help="to listen on and connect from")
        c.add_argument("--port", type=int, default=0, help="to listen on; any free one if 0")
        c.add_argument("--tracker", default="", help="announce URL; the torrent's own if not given")
        c.add_argument("--variant", default="default", choices=("default", "tuned"))
        c.add_argument("--set", action="append", default=[], help="a setting of libtorrent: name=JSON value")
        c.add_argument("--timeout", type=float, default=60, help="seconds")
        if name == "seed":
            c.add_argument("--content", required=True, help="the file")
        else:
            c.add_argument("--into", required=True, help="directory for the file")
            c.add_argument("--stay", action="store_true", help="seed on until standard input ends")
    args = parser.parse_args()
    if args.command == "version":
        print(lt.__version__)
        return 0
    if args.command == "serve":
        return serve()
    if args.command == "worker":
        return worker()
    return single(args, args.command == "seed")


if __name__ == "__main__":
    sys.exit(main())
