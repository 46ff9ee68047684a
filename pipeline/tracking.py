"""MLflow behind a queue for which training never waits; no other module imports MLflow.

A thread on rank 0 delivers rows in order. For a run that already exists, it first asks which steps
are stored, so that no step is stored twice. While the server fails, rows wait in memory. They are
also in metrics.jsonl, from which the next attempt delivers what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from pipeline.errors import ConfigError
from pipeline.redact import HIDDEN, redact
from pipeline.rundir import End, durable
from pipeline.rundir.lock import waiting_for
from pipeline.rundir.paths import (
    METRICS_FILE,
    TRACKING_ARTIFACTS,
    TRACKING_ID_FILE,
    TRACKING_PENDING_FILE,
    TRACKING_STORE,
)

logger = logging.getLogger(__name__)

_LONGEST_TAG = 5000
_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class TrackingConfig(BaseModel):
    """Where and how a run is tracked in MLflow."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    enabled: bool = True
    """Track the run in MLflow; false = write metrics.jsonl only."""
    uri: str | None = Field(default=None, repr=False)
    """Tracking store; null = MLFLOW_TRACKING_URI, else sqlite:///<runs_dir>/mlflow.db. Passwords
    and tokens in it are never stored; `vmp jobs resume` takes them from MLFLOW_TRACKING_URI."""
    experiment: str = "videomambapro"
    """Name of the MLflow experiment that lists the run."""
    flush_timeout_s: float = Field(default=60, ge=0)
    """How long a run waits at its end for a server that does not answer."""

    @field_serializer("uri", when_used="json")
    def _without_secrets(self, uri: str | None) -> str | None:
        return uri if uri is None else redact(uri)


def resolve_uri(config: TrackingConfig, runs_dir: Path) -> str:
    """Return the URI of the tracking store, secrets included.

    Raises ConfigError when `config` comes from a stored run, which holds no secrets, and the
    environment does not have them either.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if config.uri is None or HIDDEN not in config.uri:
        return config.uri or given or f"sqlite:///{runs_dir.resolve() / TRACKING_STORE}"
    if given is not None and redact(given) == config.uri:
        return given
    public = config.uri.replace(f"{HIDDEN}@", "")
    if HIDDEN not in public and {"MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"} & set(
        os.environ
    ):
        return public
    raise ConfigError(
        f"tracking.uri={config.uri}: its secret was not stored with the run; set "
        "MLFLOW_TRACKING_URI to the whole URI, or MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD"
    )


def hand_on_secrets(config: TrackingConfig) -> None:
    """Put a tracking URI that has secrets into the environment, for the ranks and jobs to come.

    They read the configuration from a file, in which the secrets are hidden.
    """
    if config.uri is not None and redact(config.uri) != config.uri:
        os.environ["MLFLOW_TRACKING_URI"] = config.uri


class DatasetUse(NamedTuple):
    """Shards that a run uses, as MLflow shows them."""

    context: str
    """Either "training" or "validation"."""
    name: str
    digest: str
    """Digest of the samples, of which MLflow stores the first 36 characters."""
    source: str
    """Address of the shards, without user name or key."""


class Tracker:
    """Sender of one run to MLflow from a thread on rank 0. It never raises MLflow's errors."""

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Iterable[DatasetUse] = (),
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        try:
            self.uri = resolve_uri(config, run_dir.parent)
        except ConfigError as error:  # other ranks wait for rank 0, so it must not raise
            logger.warning("not tracked: %s; metrics.jsonl has the rows", error)
            self.config = config.model_copy(update={"enabled": False})
        self._params = dict(params)
        self._tags = dict(tags)
        self._datasets = list(datasets)
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._stored: dict[str, int] | None = None
        self._giving_up = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="mlflow", daemon=True)
        if self.config.enabled:
            self._thread.start()

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run, the same for all attempts; None until the store has given one."""
        path = self.run_dir / TRACKING_ID_FILE
        return (path.read_text().strip() or None) if path.exists() else None

    def await_run_id(self) -> str | None:
        """Return `run_id`, after waiting up to `flush_timeout_s` for the store to answer."""
        if self.config.enabled and self.run_id is None:
            self._connected.wait(self.config.flush_timeout_s)
        return self.run_id

    def log_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Queue rows of metrics.jsonl; rows that the store already has are left out."""
        for row in rows:
            self._queue.put(("row", dict(row)))

    def log_artifact(self, path: Path) -> None:
        self._queue.put(("artifact", path))

    def log_model(self, name: str, step: int) -> None:
        """Queue the record of the run's one trained model, with its weights at `step`."""
        self._queue.put(("model", (name, step)))

    def set_tag(self, key: str, value: str) -> None:
        self._queue.put(("tag", (key, value)))

    def note_end(self, end: End) -> None:
        """Record how the attempt ended as tags of the run."""
        self.set_tag("stop.class", end.stop_class.value)
        self.set_tag("stop.reason", end.reason[:_LONGEST_TAG])

    def close(self, status: str) -> bool:
        """Deliver what is queued, then set the run's status (FINISHED, KILLED or FAILED).

        Returns False when the store does not take everything within `flush_timeout_s`. The rows
        are in metrics.jsonl, and the next attempt of this run delivers them.
        """
        if not self.config.enabled:
            return True
        self._queue.put(("end", status))
        self._thread.join(timeout=self.config.flush_timeout_s)
        self._giving_up.set()
        if self._thread.is_alive():
            logger.warning(
                "MLflow at %s did not take all metrics; they are in %s and will be delivered by "
                "the next attempt of this run",
                redact(self.uri),
                self.run_dir / METRICS_FILE,
            )
            (self.run_dir / TRACKING_PENDING_FILE).touch()
            return False
        (self.run_dir / TRACKING_PENDING_FILE).unlink(missing_ok=True)
        return True

    # --- the delivering thread -------------------------------------------------------------------

    def _deliver(self) -> None:
        client = None
        while True:
            items = self._next_batch()
            attempt = 0
            while not self._giving_up.is_set():
                try:
                    client = client or self._connect()
                    self._send(client, items)
                    break
                except Exception as error:  # no error of MLflow may harm the training
                    wait_s = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
                    if attempt == 0:
                        logger.warning(
                            "MLflow at %s: %s; retrying", redact(self.uri), _one_line(error)
                        )
                    attempt += 1
                    # The store may have taken the failed call, so the next one asks what it has.
                    self._stored = None
                    client = None  # the run may be gone from the store
                    self._giving_up.wait(wait_s)
            if self._giving_up.is_set() or items[-1][0] == "end":
                return

    def _next_batch(self) -> list[tuple[str, Any]]:
        items = [self._queue.get()]
        while len(items) < 500 and items[-1][0] != "end":
            try:
                items.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return items

    def _connect(self) -> Any:
        # By default MLflow retries seven times, so a dead server would block a call for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        with _first_touch_lock(self.uri):
            client = MlflowClient(tracking_uri=self.uri)
            experiment = client.get_experiment_by_name(self.config.experiment)
            if experiment is None:
                artifacts = None
                if self.uri.startswith("sqlite:///"):
                    artifacts = (self.run_dir.parent.resolve() / TRACKING_ARTIFACTS).as_uri()
                experiment_id = client.create_experiment(self.config.experiment, artifacts)
            else:
                experiment_id = experiment.experiment_id
        run = None if self.run_id is None else _find_run(client, self.run_id)
        if run is None:
            run = client.create_run(experiment_id, tags=self._tags, run_name=self.run_dir.name)
            durable.write_text(self.run_dir / TRACKING_ID_FILE, run.info.run_id + "\n")
            self._stored = {}
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        # The parameters of the first attempt stay, because MLflow refuses to change one.
        missing = self._params.keys() - run.data.params.keys()
        params = [Param(key, str(self._params[key])[:6000]) for key in sorted(missing)]
        if params:
            client.log_batch(run.info.run_id, params=params)
        if not (run.inputs and run.inputs.dataset_inputs):
            client.log_inputs(run.info.run_id, datasets=_dataset_inputs(self._datasets))
        self._connected.set()
        return client

    def _send(self, client: Any, items: list[tuple[str, Any]]) -> None:
        from mlflow.entities import Metric

        run_id = self.run_id
        if self._stored is None:
            self._stored = _stored_steps(client, run_id)
        metrics = []
        newest = dict(self._stored)
        for row in (payload for kind, payload in items if kind == "row"):
            for key, value in _metrics_of(row):
                if row["step"] > newest.get(key, -1):
                    metrics.append(Metric(key, value, int(row["time"] * 1000), row["step"]))
                    newest[key] = row["step"]
        for start in range(0, len(metrics), 1000):  # MLflow's limit for one call
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
        self._stored = newest
        for kind, payload in items:
            if kind == "tag":
                client.set_tag(run_id, *payload)
            elif kind == "artifact":
                self._send_artifact(client, run_id, payload)
            elif kind == "model":
                _send_model(client, run_id, *payload)
            elif kind == "end":
                client.set_terminated(run_id, status=payload)

    def _send_artifact(self, client: Any, run_id: str | None, path: Path) -> None:
        """Send an artifact, or drop it after two failures, so that rows need not wait for it."""
        for is_last in (False, True):
            try:
                client.log_artifact(run_id, str(path))
                return
            except Exception as error:  # artifact stores raise errors of their own libraries
                client.get_run(run_id)  # raises if the server is gone; all is sent again later
                if is_last:
                    logger.warning(
                        "MLflow at %s does not take the artifact %s: %s; it stays on disk only",
                        redact(self.uri),
                        path,
                        _one_line(error),
                    )


def _dataset_inputs(datasets: Iterable[DatasetUse]) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(use.name, use.digest[:36], "local", json.dumps({"uri": use.source})),
            [InputTag("mlflow.data.context", use.context)],
        )
        for use in datasets
    ]


def _send_model(client: Any, run_id: str | None, name: str, step: int) -> None:
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    if run.outputs and run.outputs.model_outputs:
        return
    model = client.create_logged_model(run.info.experiment_id, name=name, source_run_id=run_id)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])


def _metrics_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if key not in ("step", "kind", "time"):
            yield f"{row['kind']}/{key}", float(value)


def _find_run(client: Any, run_id: str) -> Any | None:
    """Return the run; None when the store, perhaps a new or another one, does not know it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        logger.warning("MLflow no longer has run %s: a new one is made", run_id)
        return None


def _stored_steps(client: Any, run_id: str | None) -> dict[str, int]:
    """Return metric -> newest step that the store holds."""
    stored: dict[str, int] = defaultdict(lambda: -1)
    for key in client.get_run(run_id).data.metrics:
        stored[key] = max(point.step for point in client.get_metric_history(run_id, key))
    return dict(stored)


@contextmanager
def _first_touch_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create a sqlite store, as concurrent migrations break it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with waiting_for(database.with_suffix(".lock")):
        yield


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split()))[:200] or type(error).__name__


_COLUMNS = ("eval/top1", "eval/top5", "eval/loss", "train/loss", "train/epoch", "train/clips_per_s")
_ATTRIBUTES = ("Source", "User", "Dataset", "Models")
_VIEW = "vmp"


def runs_page(uri: str) -> str:
    """Return the path at which the web page of an MLflow server on `uri` lists the runs.

    This also stores a view with columns of this project's metrics in the newest run's experiment.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    with _first_touch_lock(uri):
        client = MlflowClient(tracking_uri=uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = client.search_runs(experiments, max_results=1, order_by=["attributes.start_time DESC"])
    if not newest:
        return "#/experiments"
    experiment_id = newest[0].info.experiment_id
    columns = [f"attributes.`{name}`" for name in _ATTRIBUTES]
    columns += [f"metrics.`{name}`" for name in _COLUMNS]
    # This is what the page's "Share" button stores; the address refers to it by name.
    view = json.dumps({"selectedColumns": columns})
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{_VIEW}", view)
    query = f"workflowType=machine_learning&viewStateShareKey={_VIEW}"
    return f"#/experiments/{experiment_id}/runs?{query}"
