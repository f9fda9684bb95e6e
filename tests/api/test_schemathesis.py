"""The server keeps what its OpenAPI document promises, to valid and invalid requests; see benchmarks/fuzz_api.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.api_fuzz import EchoEngine, Fuzz

from ollampi.api.app import create_app
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore

EXAMPLES = int(os.environ.get("OLLAMPI_FUZZ_EXAMPLES", "15"))


@pytest.mark.timeout(1500)  # it asks every route many times: minutes on a busy machine
@pytest.mark.filterwarnings("ignore")  # of hypothesis and schemathesis about each other
def test_every_answer_is_as_the_document_says(models_folder: Path, tmp_path: Path) -> None:
    app = create_app(EchoEngine(), Store([models_folder], LocalStore(tmp_path)), Settings(max_body_bytes=1 << 20))
    fuzz = Fuzz(app.test_client().get("/api/openapi.json").json, ["demo", "chatty", "thinker"], app)
    fuzz.run(EXAMPLES)
    assert not fuzz.failures, "\n\n".join(f"{key}\n  {case}" for key, case in fuzz.failures.items())
    assert len(fuzz.cases) == len({(route.method, route.path) for route in app.config["ROUTES"].values()})
    assert {200, 400, 404, 500} <= set(fuzz.statuses)
