"""What lies in a folder of records after a fault, beside that of an undisturbed comparison."""

from pathlib import Path

from subquad.records import Store


def finished(store: Store) -> dict[str, bytes]:
    """The records of what is done well, by their keys, byte for byte."""
    return {
        path.stem: path.read_bytes()
        for path in records(store)
        if (record := store.get(path.stem)) is not None and record["status"] == "ok"
    }


def lost(store: Store, whole: Store, before: dict[str, bytes]) -> str:
    """What is not as if nothing had happened, after the comparison was started again; "" for nothing.

    before: what was finished before it was.
    """
    if not all(
        (path := store.record_path(key)).exists() and path.read_bytes() == content
        for key, content in before.items()
    ):
        return "a record that was there was lost or done again"
    for path in records(whole):
        here, there = store.get(path.stem), whole.get(path.stem)
        assert there
        what = f"{there['kind']} {there['spec'].get('mechanism') or there['spec'].get('baseline')}"
        if here is None or here["status"] != "ok":
            return f"no record of {what}: {here and here['reason']}"
        if here["result"] != there["result"]:
            return f"another result of {what}"
        weights = [each.model_path(path.stem) / "model.safetensors" for each in (store, whole)]
        if there["kind"] == "fit" and weights[0].read_bytes() != weights[1].read_bytes():
            return f"other weights of {what}"
    left = [path for path in store.folder.rglob("*") if ".draft-" in path.name]
    left += (store.folder / "checkpoints").glob("*.safetensors")
    return f"{left[0].name} was left behind" if left else ""


def records(store: Store) -> list[Path]:
    return sorted((store.folder / "records").glob("*.json"))
