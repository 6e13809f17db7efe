"""Artifacts that the tests of executors and of servers share."""

from pathlib import Path

import models
import pytest


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.product().save(tmp_path_factory.mktemp("product") / "product.qc")


@pytest.fixture(scope="session")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.product(batch=8).save(tmp_path_factory.mktemp("batched") / "batched.qc")


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.opened().save(tmp_path_factory.mktemp("opened") / "opened.qc")


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.chain().save(tmp_path_factory.mktemp("chain") / "chain.qc")


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.doubling().save(tmp_path_factory.mktemp("doubling") / "doubling.qc")


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.slow().save(tmp_path_factory.mktemp("slow") / "slow.qc")
