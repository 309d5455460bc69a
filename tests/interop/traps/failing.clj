;; A handler that fails at the first event. The program goes on, until its standard input ends.
(ns failing
  (:require [tidegate.client :as client])
  (:import (com.tidegate.v1 SubscribeRequest)))

(let [channel (client/channel (first *command-line-args*))
      request (-> (SubscribeRequest/newBuilder) (.addFilters "a.b") .build)]
  (try
    (client/subscribe! channel request
                       (fn [{:keys [type]}]
                         (when (= type "event")
                           (throw (ex-info "the handler failed" {}))))
                       {})
    (catch Exception failure
      (println (format "{\"type\":\"failed\",\"message\":\"%s\"}" (.getMessage failure)))))
  (read-line)
  (.shutdownNow channel))
