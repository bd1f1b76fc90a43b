"""Ray's calls that ``RayEngine`` uses, done in this process at once: faults come where a test wants them."""

from __future__ import annotations

import types


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    def __init__(self, call):
        self.call = call


class Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, *arguments):
        return Ref(lambda: self.actor.do(self.name, arguments))


class Actor:
    """Made when it is first asked for something; ``fault(number, name, count)`` may raise before a call."""

    def __init__(self, cls, arguments, number, fault):
        self._make = lambda: cls(*arguments)
        self.number, self._fault = number, fault
        self.count, self.it, self.is_dead = 0, None, False

    def __getattr__(self, name):
        return Method(self, name)

    def do(self, name, arguments):
        if self.is_dead:
            raise RayError("the actor is dead")
        try:
            self._fault(self.number, name, self.count)
        except RayError:
            self.is_dead = True
            raise
        self.count += 1
        self.it = self.it or self._make()
        try:
            return getattr(self.it, name)(
                *(argument.call() if isinstance(argument, Ref) else argument for argument in arguments)
            )
        except Exception as error:
            raise RayTaskError(error) from error


def inline_ray(fault):
    """A module in Ray's place, and the list of its actors."""
    actors = []

    def remote(cls):
        def make(*arguments):
            actors.append(Actor(cls, arguments, len(actors), fault))
            return actors[-1]

        def options(**kinds):
            assert kinds["num_cpus"] == 1
            return types.SimpleNamespace(remote=make)

        return types.SimpleNamespace(options=options)

    def kill(actor):
        actor.is_dead = True

    ray = types.ModuleType("ray")
    ray.exceptions = types.ModuleType("ray.exceptions")
    ray.exceptions.RayError, ray.exceptions.RayTaskError = RayError, RayTaskError
    ray.put = lambda value: Ref(lambda: value)
    ray.get = lambda ref: ref.call()
    ray.wait = lambda refs, num_returns: (refs[:num_returns], refs[num_returns:])
    ray.kill, ray.remote = kill, remote
    return ray, actors
