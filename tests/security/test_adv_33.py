"""Advisory 33: control routes that are open by mistake: every rule carries a permission or is one of six."""

from __future__ import annotations

from support.attacks import PUBLIC, application

from ollampi.api.access import Permission


def test_every_rule_has_a_permission():
    app = application()
    routes = app.config["ROUTES"]
    for rule in app.url_map.iter_rules():
        route = routes[rule.endpoint]
        assert route.path == rule.rule
        assert isinstance(route.permission, Permission)
        assert (route.permission is Permission.PUBLIC) == (route.path in PUBLIC)
    assert len(PUBLIC) <= 6  # docs/security.md names them
    changing = [route for route in routes.values() if route.method in ("DELETE", "PUT", "PATCH")]
    assert all(route.permission is Permission.MANAGE for route in changing)
