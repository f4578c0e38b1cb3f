"""The processes around the server: queue, worker, dashboard."""

import pytest

from support.memoria import KEY, call, free_port, wait_until


@pytest.fixture
def queue(memoria):
    port = free_port()
    process = memoria("0.9.0").start("-m", "memoria.queue", "--host", "127.0.0.1", "--port", str(port))
    wait_until(lambda: call(port, "/depth").status == 200, process=process)
    return port, process


def start_worker(memoria, queue_port, server_port, flag=None):
    environment = {
        "MEMORIA_QUEUE_URL": f"http://127.0.0.1:{queue_port}",
        "MEMORIA_SERVER_URL": f"http://127.0.0.1:{server_port}",
        "MEMORIA_API_KEY": KEY,
    }
    if flag is not None:
        environment["MEMORIA_MAINTENANCE_FILE"] = str(flag)
    return memoria("0.9.0").start("-m", "memoria.worker", **environment)


def depth(port):
    return call(port, "/depth").body["depth"]


def test_the_queue_hands_out_jobs_in_order_and_counts_until_they_are_done(queue):
    port, _ = queue
    assert call(port, "/jobs/next").status == 204
    taken = call(port, "/jobs", {"jobs": [{"n": 1}, {"n": 2}]})
    assert (taken.status, taken.body["depth"]) == (202, 2)
    assert call(port, "/jobs", {"n": 3}).status == 202
    first = call(port, "/jobs/next?wait=1").body
    assert first == {"id": taken.body["ids"][0], "job": {"n": 1}}
    assert depth(port) == 3
    assert call(port, f"/jobs/{first['id']}/retry", {}).status == 200
    assert call(port, "/jobs/next").body == first
    assert call(port, f"/jobs/{first['id']}/done", {}).body == {"depth": 2}
    assert call(port, f"/jobs/{first['id']}/done", {}).status == 404
    report = call(port, "/depth").body
    assert (report["depth"], report["drained_total"], report["accepted_total"]) == (2, 1, 3)
    lines = call(port, "/metrics").body.splitlines()
    assert "memoria_queue_depth 2" in lines
    assert "memoria_queue_drained_total 1" in lines
    for wrong in ("[]", "no json"):
        assert call(port, "/jobs", wrong).status == 400
    assert call(port, "/jobs/next?wait=x").status == 400


def test_the_queue_is_gone_with_its_process_at_once(queue):
    port, process = queue
    call(port, "/jobs", {"n": 1})
    assert process.terminate() < 2
    assert process.handle.returncode == 0


def test_the_worker_drains_the_queue_into_the_server(memoria, make_database, queue, dialect):
    port, _ = queue
    database = make_database(dialect, "0.9.0", 40)
    with memoria("0.9.0").server(database.url) as server:
        jobs = [{"user_input": f"job {n}", "memory_id": f"job-{n}"} for n in range(20)]
        jobs.append({"refused": True})
        call(port, "/jobs", {"jobs": jobs})
        workers = [start_worker(memoria, port, server) for _ in range(2)]
        wait_until(lambda: depth(port) == 0)
        telemetry = call(server, "/governance/telemetry").body
        assert telemetry["counters"]["ingested_since_start"] == 20
        assert telemetry["events"][0]["source"] == "worker"
        for worker in workers:
            assert worker.terminate() < 1.5
            assert worker.handle.returncode == 0
        assert "refused" in workers[0].output() + workers[1].output()
    assert database.value("SELECT count(*) FROM long_term_memory WHERE memory_id LIKE 'job-%'") == 20


def test_the_worker_pauses_while_the_flag_says_true(memoria, make_database, queue, tmp_path):
    port, _ = queue
    flag = tmp_path / "maintenance"
    flag.write_text("true\n")
    with memoria("0.9.0").server(make_database("sqlite", "0.9.0").url) as server:
        call(port, "/jobs", {"user_input": "patience"})
        worker = start_worker(memoria, port, server, flag)
        wait_until(lambda: "maintenance on" in worker.output(), process=worker)
        assert depth(port) == 1
        flag.write_text("false\n")
        wait_until(lambda: depth(port) == 0, process=worker)


def test_a_worker_without_server_gives_its_job_back(memoria, queue):
    port, _ = queue
    call(port, "/jobs", {"user_input": "kept"})
    worker = start_worker(memoria, port, free_port())
    wait_until(lambda: "Connection refused" in worker.output(), process=worker)
    assert worker.terminate() < 1.5
    assert depth(port) == 1
    assert call(port, "/jobs/next?wait=5").body["job"] == {"user_input": "kept"}


def test_the_dashboard_shows_what_the_server_says(memoria, make_database):
    database, port = make_database("sqlite", "0.9.0", 100), free_port()
    one = memoria("0.9.0")
    server_process, server = one.start_server(database.url)
    dashboard = one.start(
        *("-m", "memoria_dashboard", "--host", "127.0.0.1", "--port", str(port)),
        MEMORIA_SERVER_URL=f"http://127.0.0.1:{server}",
        MEMORIA_API_KEY=KEY,
    )
    wait_until(lambda: call(port, "/data").status == 200, process=dashboard)
    data = call(port, "/data").body
    assert data["ingestion"]["memories"] == database.value("SELECT count(*) FROM long_term_memory")
    assert "rows in long_term_memory" in call(port, "/").body
    server_process.terminate()
    assert call(port, "/").status == 502
    assert call(port, "/healthz").status == 200
    assert dashboard.terminate() < 2
