"""Settings, all from the environment, each checked at start. docs/configuration.md lists them.

`TRAINMASTER_HOME` holds all state of one machine: the SQLite database, blobs, static files, generated secrets.
"""

from __future__ import annotations

from pathlib import Path

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

HOME = Path(env.str("TRAINMASTER_HOME", default=str(BASE_DIR / "var"))).resolve()


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
    "whitenoise.middleware.WhiteNoiseMiddleware",
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

DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{HOME / 'db.sqlite3'}")}
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

BROKER_URL = env.str("BROKER_URL", default="redis://127.0.0.1:6379/0")
"""With the server's credentials; rediss:// for TLS."""
NODE_BROKER_URL = env.str("NODE_BROKER_URL", default="")
"""What nodes are told, without credentials. Empty: BROKER_URL less its credentials."""
BROKER_CA_FILE = env.str("BROKER_CA_FILE", default="")
if BROKER_URL.split("://")[0] not in ("redis", "rediss"):
    raise ImproperlyConfigured(
        f"BROKER_URL must start with redis:// or rediss://, and is {BROKER_URL.split('://')[0]}://."
    )
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [BROKER_URL], "prefix": "live"},
    }
}

# --- blobs ------------------------------------------------------------------------------------------------------------

BLOB_DIR = Path(env.str("TRAINMASTER_BLOB_DIR", default=str(HOME / "blobs")))
MAX_BLOB_BYTES = env.int("TRAINMASTER_MAX_BLOB_BYTES", default=64 * 1024**3)
"""The largest weights, update or artifact that a node may send."""
if MAX_BLOB_BYTES < 1:
    raise ImproperlyConfigured(f"TRAINMASTER_MAX_BLOB_BYTES must be at least 1, and is {MAX_BLOB_BYTES}.")

# --- accounts ---------------------------------------------------------------------------------------------------------

PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
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
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.str("TRAINMASTER_LOG_LEVEL", default="INFO")},
}
