"""The product's settings with a throw-away home. DATABASE_URL chooses the database, as in production."""

import os
import tempfile

if "TRAINMASTER_TEST_HOME" not in os.environ:
    # Worker processes of one run share the variable, and so the folder.
    os.environ["TRAINMASTER_TEST_HOME"] = tempfile.mkdtemp(prefix="trainmaster-test-")
os.environ["TRAINMASTER_HOME"] = os.environ["TRAINMASTER_TEST_HOME"]
os.environ["TRAINMASTER_SECRET_KEY"] = "only-for-tests"

from webapp.settings import *  # noqa: F403

if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":  # noqa: F405
    # A file, as in production: threads that race wait for each other's locks there, and fail at once in memory.
    DATABASES["default"]["TEST"] = {"NAME": str(HOME / "test.sqlite3")}  # noqa: F405

# Argon2 takes 50 ms a password by design; the tests sign in hundreds of times.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# WhiteNoise warns of a folder that is not there, and warnings are errors.
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # noqa: F405
# A connection that a server's thread keeps for the next request would hold the test database when it is dropped.
DATABASES["default"]["CONN_MAX_AGE"] = 0  # noqa: F405
# A row for each sign-in, of which the tests have hundreds. tests/web/teams/test_sign_in.py switches it on.
AXES_ENABLED = False
