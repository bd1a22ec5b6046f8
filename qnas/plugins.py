"""Builds the plugin manager: entry points in, components by kind and name out. Holds no global state."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pluggy

from qnas import hookspecs
from qnas.errors import PluginError, unknown_name
from qnas.hookspecs import KINDS, ComponentSpec

GROUP = "qnas"


@dataclass(frozen=True)
class Component:
    """A registered component and the plugin (``distribution:entry-point``) that owns it."""

    spec: ComponentSpec
    owner: str

    def load(self) -> Any:
        """Import and return the component's target.

        Raises:
            PluginError: the import fails or the attribute is absent; names the plugin and the cause.
        """
        module_name, _, attribute = self.spec.target.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # a plugin may fail in any way; its name must reach the user
            raise PluginError(
                f"The {self.spec.kind} {self.spec.name!r} of plugin {self.owner!r} cannot be imported from "
                f"{self.spec.target!r}: {type(error).__name__}: {error}. "
                f"Repair or uninstall the plugin, or choose another {self.spec.kind}."
            ) from error


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was set aside, and why."""

    owner: str
    reason: str


class Registry:
    """All components that the installed plugins registered."""

    def __init__(self, components: Iterable[Component], broken: Iterable[BrokenPlugin] = ()) -> None:
        self.broken = tuple(broken)
        self._components: dict[tuple[str, str], list[Component]] = {}
        for component in components:
            self._components.setdefault((component.spec.kind, component.spec.name), []).append(component)

    def components(self, kind: str | None = None) -> list[Component]:
        """Return the components, sorted by kind, name and owner."""
        if kind is not None and kind not in KINDS:
            raise PluginError(unknown_name("The plugin kind", kind, KINDS, "See `qnas plugins`."))
        found = [c for group in self._components.values() for c in group if kind in (None, c.spec.kind)]
        return sorted(found, key=lambda c: (c.spec, c.owner))

    def names(self, kind: str) -> list[str]:
        """Return the names registered for ``kind``, sorted."""
        return sorted({c.spec.name for c in self.components(kind)})

    def find(self, kind: str, name: str) -> Component:
        """Return the one component of this kind and name.

        Raises:
            PluginError: there is none, or more than one.
        """
        found = self._components.get((kind, name), [])
        if not found:
            aside = "".join(f" Plugin {b.owner!r} was set aside: {b.reason}" for b in self.broken)
            raise PluginError(
                unknown_name(f"The {kind}", name, self.names(kind), f"List them with `qnas plugins --kind {kind}`.")
                + aside
            )
        if len(found) > 1:
            owners = " and ".join(repr(c.owner) for c in found)
            raise PluginError(
                f"Two plugins register the {kind} {name!r}: {owners}. Uninstall one of them or ask its author to "
                "rename it."
            )
        return found[0]

    def load(self, kind: str, name: str) -> Any:
        """Import and return the component of this kind and name."""
        return self.find(kind, name).load()

    def duplicates(self) -> list[tuple[Component, ...]]:
        """Return the groups of components that share a kind and a name."""
        return [tuple(group) for _, group in sorted(self._components.items()) if len(group) > 1]


def load_registry(extra: Iterable[tuple[str, object]] = ()) -> Registry:
    """Collect the components of every installed plugin.

    pluggy's own ``load_setuptools_entrypoints`` aborts at the first broken plugin and drops the second of two equal
    entry-point names, so each entry point is loaded here on its own.

    Args:
        extra: further ``(owner, plugin)`` pairs, as tests use them.
    """
    broken: list[BrokenPlugin] = []
    plugins: list[tuple[str, object]] = []
    points = sorted(
        {
            (point.dist.name if point.dist else "unknown", point.name, point.value): point
            for point in importlib.metadata.entry_points(group=GROUP)
        }.items()
    )
    for (distribution, name, _), point in points:
        owner = f"{distribution}:{name}"
        try:
            plugins.append((owner, point.load()))
        except Exception as error:  # set aside whatever a foreign module raises at import
            broken.append(BrokenPlugin(owner, f"{type(error).__name__}: {error}"))
    components: list[Component] = []
    for owner, plugin in [*plugins, *extra]:
        try:
            components.extend(_components_of(owner, plugin))
        except Exception as error:  # set aside whatever a foreign hook raises
            broken.append(BrokenPlugin(owner, f"{type(error).__name__}: {error}"))
    return Registry(components, broken)


def _components_of(owner: str, plugin: object) -> list[Component]:
    """Register one plugin with a manager of its own, so that its faults cannot touch another's."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    _refuse_misspelt(plugin)
    manager.register(plugin, name=owner)
    manager.check_pending()
    found = []
    for spec in (spec for result in manager.hook.qnas_components() for spec in result):
        if not isinstance(spec, ComponentSpec):
            raise PluginError(f"qnas_components yielded {spec!r}, which is no ComponentSpec")
        if spec.kind not in KINDS:
            raise PluginError(unknown_name("the component kind", spec.kind, KINDS, "See qnas.hookspecs.KINDS."))
        if not spec.name or "/" in spec.name or ":" not in spec.target:
            raise PluginError(f"{spec!r}: a name must not be empty or hold '/', a target reads 'module:attribute'")
        found.append(Component(spec, owner))
    if not found:
        raise PluginError("it implements no hook; did it forget @qnas.hookspecs.hookimpl on qnas_components?")
    return sorted(found, key=lambda c: c.spec)


def _refuse_misspelt(plugin: object) -> None:
    """Name a hook implementation that pluggy would only call unknown, with the nearest real one."""
    real = [name for name in vars(hookspecs) if name.startswith("qnas_")]
    for name in dir(plugin):
        if hasattr(getattr(plugin, name, None), "qnas_impl") and name not in real:
            raise PluginError(unknown_name("the hook", name, real, "See qnas.hookspecs."))
