"""The page about serving, the dashboard and the scrape example say what the server does."""

import argparse
import json
import re
from pathlib import Path

from operations import make_metrics, names_of

from nanovllm.cli import serve
from nanovllm.server.settings import ServerSettings

DOCS = Path(__file__).resolve().parents[2] / "docs"
FLAG = re.compile(r"--[a-z][a-z-]+")
SERVING = (DOCS / "serving.md").read_text(encoding="utf-8")


def test_every_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [entry["query"]["query"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"]
    used = set(re.findall(r"nanovllm:\w+|process_\w+", " ".join(expressions)))
    assert len(used) > 15
    assert used <= names_of(make_metrics().scrape().body.decode()) | {"nanovllm:http_responses_total"}


def test_answers_are_counted_under_the_name_that_the_dashboard_reads() -> None:
    metrics = make_metrics()
    metrics.count_response("GET", 200)
    assert "nanovllm:http_responses_total" in names_of(metrics.scrape().body.decode())


def test_the_table_of_metrics_is_that_of_a_scrape() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|", SERVING, re.MULTILINE))
    found = {}
    for family in make_metrics().collect():
        suffix = "_total" if family.type == "counter" else ""
        found[family.name.removeprefix("nanovllm:") + suffix] = family.type
    assert rows == found


def test_every_option_that_the_page_names_exists() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    serve.add_parser(commands)
    flags = FLAG.findall(commands.choices["serve"].format_help())
    assert set(FLAG.findall(SERVING)) <= set(flags)


def test_the_scrape_example_asks_the_default_port_for_the_metrics() -> None:
    text = (DOCS / "prometheus.yml").read_text(encoding="utf-8")
    assert "metrics_path: /metrics" in text
    assert f'targets: ["{ServerSettings().host}:{ServerSettings().port}"]' in text
