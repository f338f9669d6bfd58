from django.urls import path

from webapp.fleet import views

urlpatterns = [
    path("nodes/", views.node_list, name="node-list"),
    path("nodes/add/", views.node_add, name="node-add"),
    path("nodes/add/<int:token_id>/", views.node_arrival, name="node-arrival"),
    path("nodes/<uuid:node_id>/", views.node_page, name="node-page"),
    path("nodes/<uuid:node_id>/approve/", views.node_approve, name="node-approve"),
    path("nodes/<uuid:node_id>/refuse/", views.node_refuse, name="node-refuse"),
    path("nodes/<uuid:node_id>/revoke/", views.node_revoke, name="node-revoke"),
    path("data/", views.source_list, name="source-list"),
]
