from django.urls import path

from webapp.jobs import new_views, views

urlpatterns = [
    path("jobs/", views.job_list, name="job-list"),
    path("jobs/new/", new_views.job_new, name="job-new"),
    path("jobs/new/check/", new_views.job_check, name="job-check"),
    path("jobs/examples/<slug:preset>/", new_views.job_example, name="job-example"),
    path("jobs/<int:job_id>/", views.job_page, name="job-page"),
    path("jobs/<int:job_id>/cancel/", views.job_cancel, name="job-cancel"),
    path("jobs/<int:job_id>/resume/", views.job_resume, name="job-resume"),
    path("jobs/<int:job_id>/clone/", new_views.job_clone, name="job-clone"),
    path("jobs/<int:job_id>/spec/", views.job_spec, name="job-spec"),
    path("jobs/<int:job_id>/parts/<slug:part>/", views.job_part, name="job-part"),
    path("jobs/<int:job_id>/artifacts/<int:artifact_id>/", views.artifact_download, name="artifact-download"),
]
