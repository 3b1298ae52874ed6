"""The first minutes, without a registry and without a secret: what is said, and that all of it
heals by itself once the world is there.
"""

from attacks.table import Scenario, must


def registry_is_down(stage):
    """The appliance has launched by now; nobody has pulled anything."""

    def pulling():
        services = stage.status()["services"]
        # `web` waits for its secret first.
        return all(one.get("detail") for one in services if one["name"] == "open") and services

    stage.until("a pull that has failed", pulling)
    said = stage.diagnosed("image-pull-failing", "no-release", "publish-waiting")
    states = {one["name"]: one["state"] for one in stage.status()["services"]}
    return must("running" not in states.values(), f"{states}"), said


def registry_is_back(stage):
    stage.registry(True)
    wanted = {"open", "attacker"}

    def up():
        services = stage.status()["services"]
        return wanted <= {one["name"] for one in services if one["state"] == "running"}

    stage.until("services without a secret", up)
    return stage.get("/").strip(), stage.diagnosed("secret-missing", "publish-waiting")


def secrets_are_there(stage):
    stage.give_secrets()
    stage.until("all services", stage.running)
    published = stage.until(
        "the release attestation", lambda: stage.status()["publish"]["state"] == "published"
    )
    return must(published, "all run, and the attestation is published"), stage.diagnosed(
        exit_code=0
    )


def sources(stage):
    """Attackers do have addresses of their own here."""
    seen = [
        next(h for h in stage.get("/headers", source=a).split('"') if h.startswith("x-forwarded-f"))
        for a in ("198.18.0.1", "198.18.0.2", "127.0.0.1")
    ]
    return must(len(set(seen)) == 3, ", ".join(seen))


GROUP = "opening"
SCENARIOS = [
    Scenario(GROUP, "without a registry nothing runs, and the doctor says why", registry_is_down),
    Scenario(GROUP, "with the registry back, services start by themselves", registry_is_back),
    Scenario(GROUP, "with the secrets, all run and the release is published", secrets_are_there),
    Scenario(GROUP, "clients have the addresses that they come from", sources),
]
