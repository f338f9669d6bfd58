"""Settings, all from the environment, each checked at start. docs/configuration.md lists them.

`TRAINMASTER_HOME` holds all state of one machine: the SQLite database, blobs, static files, generated secrets.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from webapp.core.broker import tls_options

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

HOME = Path(env.str("TRAINMASTER_HOME", default=str(BASE_DIR / "var"))).resolve()


def _checked_url(name: str, url: str, *schemes: str) -> str:
    """Return `url`, or raise ImproperlyConfigured, with a sentence that repeats no password."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        good = False
    if not good:
        starts = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ImproperlyConfigured(
            f"{name} must be an address that starts with {starts}, with a host and perhaps a port."
        )
    return url


def _secret_key() -> str:
    """TRAINMASTER_SECRET_KEY, or what `manage.py up` generated under the home."""
    key: str = env.str("TRAINMASTER_SECRET_KEY", default="")
    kept = HOME / "secrets" / "django"
    if not key and kept.is_file():
        key = kept.read_text().strip()
    if not key:
        raise ImproperlyConfigured(
            f"TRAINMASTER_SECRET_KEY is not set and {kept} does not exist: set it, or start once with 'make up'."
        )
    return key


SECRET_KEY = _secret_key()
DEBUG = False
PUBLIC_URL = env.str("TRAINMASTER_PUBLIC_URL", default="http://127.0.0.1:8000").rstrip("/")
_checked_url("TRAINMASTER_PUBLIC_URL", PUBLIC_URL, "http", "https")
"""Where browsers and nodes reach the web server."""
ALLOWED_HOSTS = env.list("TRAINMASTER_ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
_secure = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = _secure
CSRF_COOKIE_SECURE = _secure
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _secure else None
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
# Forms and JSON. Blobs have a door of their own, before Django.
DATA_UPLOAD_MAX_MEMORY_SIZE = 1_000_000
# No inline script or style, and nothing from another host: a name with a script in it stays text.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "channels",
    "django_htmx",
    "webapp.core",
    "webapp.teams",
    "webapp.fleet",
    "webapp.blobs",
    "webapp.telemetry",
    "webapp.jobs",
    "webapp.ingest",
    "webapp.stack",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "webapp.urls"
ASGI_APPLICATION = "webapp.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# --- database: SQLite in WAL mode with immediate transactions, or PostgreSQL by DATABASE_URL --------------------------

_database_url = env.str("DATABASE_URL", default=f"sqlite:///{HOME / 'db.sqlite3'}")
if _database_url.split("://")[0] not in ("postgresql", "postgres", "sqlite"):
    raise ImproperlyConfigured("DATABASE_URL must start with postgresql:// or sqlite:///.")
DATABASES = {"default": env.db_url_config(_database_url)}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # Several processes write: take the write lock at the start, so that nobody fails half-way through.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA mmap_size=134217728;",
    }
else:
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    DATABASES["default"]["CONN_MAX_AGE"] = 60
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- broker -----------------------------------------------------------------------------------------------------------

BROKER_URL = _checked_url("BROKER_URL", env.str("BROKER_URL", default="redis://127.0.0.1:6379/0"), "redis", "rediss")
"""With the server's credentials; rediss:// for TLS."""
NODE_BROKER_URL = env.str("NODE_BROKER_URL", default="")
"""What nodes are told, without credentials. Empty: BROKER_URL less its credentials."""
if NODE_BROKER_URL and "@" in _checked_url("NODE_BROKER_URL", NODE_BROKER_URL, "redis", "rediss"):
    raise ImproperlyConfigured(
        "NODE_BROKER_URL is told to every node, and must hold no credentials: leave out what is before @."
    )
BROKER_CA_FILE = env.str("BROKER_CA_FILE", default="")
if BROKER_CA_FILE and not Path(BROKER_CA_FILE).is_file():
    raise ImproperlyConfigured(f"BROKER_CA_FILE names {BROKER_CA_FILE}, and there is no such file.")
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "webapp.telemetry.layer.LiveLayer",
        "CONFIG": {"hosts": [{"address": BROKER_URL, **tls_options(BROKER_URL, BROKER_CA_FILE)}], "prefix": "live"},
    }
}

# --- blobs ------------------------------------------------------------------------------------------------------------

BLOB_DIR = Path(env.str("TRAINMASTER_BLOB_DIR", default=str(HOME / "blobs")))
_max_blob_bytes = env.str("TRAINMASTER_MAX_BLOB_BYTES", default=str(64 * 1024**3))
if not (_max_blob_bytes.isdecimal() and int(_max_blob_bytes)):
    raise ImproperlyConfigured(
        f"TRAINMASTER_MAX_BLOB_BYTES must be a whole number above 0, and is '{_max_blob_bytes}'."
    )
MAX_BLOB_BYTES = int(_max_blob_bytes)
"""The largest weights, update or artifact that a node may send."""

# --- the server's own data --------------------------------------------------------------------------------------------

DATA_FILE = Path(env.str("TRAINMASTER_DATA", default=str(HOME / "data.toml")))
"""Data sources on which the server may measure the models of federated jobs. The file may be absent."""

# --- accounts ---------------------------------------------------------------------------------------------------------

PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
# Ten tries at a name from one address, then a pause. The sign-in form says so itself, so axes' page and middleware are not used.
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
SILENCED_SYSTEM_CHECKS = ["axes.W002"]
LOGIN_URL = "sign-in"
LOGIN_REDIRECT_URL = "job-list"
LOGOUT_REDIRECT_URL = "sign-in"

# --- language, time, static files -------------------------------------------------------------------------------------

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = HOME / "static"
_npm = BASE_DIR / "node_modules"
STATICFILES_DIRS: list[Path | tuple[str, Path]] = [
    BASE_DIR / "static",
    ("vendor/bootstrap", _npm / "bootstrap" / "dist" / "css"),
    ("vendor/htmx", _npm / "htmx.org" / "dist"),
    ("vendor/idiomorph", _npm / "idiomorph" / "dist"),
    ("vendor/inter", _npm / "@fontsource-variable" / "inter" / "files"),
    ("vendor/uplot", _npm / "uplot" / "dist"),
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "servestatic.storage.CompressedManifestStaticFilesStorage"},
}

_log_level = env.str("TRAINMASTER_LOG_LEVEL", default="INFO")
if _log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
    raise ImproperlyConfigured(f"TRAINMASTER_LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR, and is '{_log_level}'.")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": _log_level},
}
